// The queries of SelectKeys as IndexScores reads them: RoPE, Hadamard, fp8.
#pragma once

#include "common/view.h"
#include "kernels/ops/rope.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

struct RotateAndAbsorbParams;

struct IndexQueriesParams {
  ConstAnyTensor3 q;                     // [T, H, 128]
  Vector<const std::int32_t> positions;  // [T]
  RopeTable table;
  RopeLayout layout;
  ConstAnyMatrix head_weights;  // [T, H] float32
  int padded_heads;             // 16, 32 or 64, at least H
  std::uint8_t* queries;        // [T, PreparedQueryBytes]
  float* weights;               // [T, padded heads]
  std::int32_t* work;           // [ScoreWorkInts(T)]  becomes 0
};

// Everything queued before it has ended when it begins its work, and only then may the kernel
// behind it start.
void PrepareIndexQueries(const IndexQueriesParams& params, cudaStream_t stream);
// The same, and RotateAndAbsorb of the same rows, in one launch.  False, having queued nothing, for
// more rows than decode has, other types than bfloat16, and what RotateAndAbsorb does not take.
bool PrepareIndexQueriesAndAbsorb(const IndexQueriesParams& params,
                                  const RotateAndAbsorbParams& queries, cudaStream_t stream);

}  // namespace dsa::cuda
