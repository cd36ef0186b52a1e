// Gate of 1 to 64 tokens in one launch, which also sorts the pairs for the experts behind it.
#pragma once

#include "kernels/cuda/expert_pairs.h"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/ops/gate.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

// bfloat16 x and weight with 16-byte aligned rows, E <= 256, 1 to 64 tokens, and no more blocks
// than all run at once.
bool FewGateTakes(const GateParams& params);

// How many it has.
int FewGateBlocks(const GateParams& params);

// The parts of the logits, for one call.
float* TakeFewGateLogits(ScratchArena& arena, const GateParams& params);

inline constexpr std::int64_t kFewGateExperts = 256;

struct FewGateCall {
  GateParams gate;
  const PairPreparation* preparation;  // of its choice, kFewGateExperts at most; null: none
  float* logits;                       // TakeFewGateLogits
  unsigned* counters;                  // two words, zero between ops
};
// Any stream, capture included.  A row's bits do not depend on the rows beside it.
void FewGate(const FewGateCall& call, cudaStream_t stream);

}  // namespace dsa::cuda
