// What the kernels of LatentAttention share: how a row's keys are split, and where parts go.
//
// A row's keys are cut into `splits` ranges of whole turns of a kernel, of equal length as far as
// they go; a kernel attends to one range for some heads, and the ranges are joined in order.
#pragma once

#include "kernels/backend_buffer.h"
#include "kernels/cuda/latent_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/scratch_limits.h"

#include <cstdint>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

inline constexpr int kKeyBlock = 64;  // keys of a turn
inline constexpr int kSplitsMax = 32;

// Of every row, split and head: the sum of exp(score - maximum) * latent, the maximum and the sum
// of exp(score - maximum).  A range without keys has a sum of 0 and nothing else.
struct AttentionParts {
  float* outputs;  // [T, splits, H, 512]
  float2* maxima;  // [T, splits, H]  maximum, sum
  int splits;      // 1: the kernels write the output themselves
  bool is_binary;  // maxima and powers are of base 2
  // Of the kernels that join their parts themselves, and lay them out as they like.
  unsigned* counters;  // many heads: two words a row and group of heads, zero between launches
  float* logs;         // few heads: [row and group of heads, splits, splits, 16]
};

// Of RunFewHeads: `outputs` and `logs` of as many blocks as run at once, memory of its own whose
// bytes are 0xFF between launches.
inline constexpr std::int64_t kFewHeadsPartValues = std::int64_t{kMultiprocessors} * 16 * 512;
inline constexpr std::int64_t kFewHeadsPartBytes =
    (kFewHeadsPartValues + std::int64_t{kMultiprocessors} * 16 * kSplitsMax) * 4;

// What LatentAttention has beside its parameters.
struct AttentionMeans {
  int multiprocessors;
  bool batch_invariant;  // Backend::PlanAttention
  const ScratchLimits& limits;
  const DeviceBuffer& scratch;
  float* few_heads_parts;  // kFewHeadsPartBytes of 0xFF between ops
  unsigned* counters;      // kAttentionCounterBytes, zero between ops
};
void LatentAttention(const LatentAttentionParams& params, const AttentionMeans& means,
                     cudaStream_t stream);

// bfloat16 activations over a cache of fp8 or bfloat16, on the tensor cores: 64 heads a block,
// fewer for few heads.
int TensorAttentionGroups(std::int64_t heads);
void RunTensorAttention(const LatentAttentionParams& params, const AttentionParts& parts,
                        cudaStream_t stream);

// bfloat16 activations with rows of whole 16 bytes over an fp8 cache, 64 or 16 heads a block.
// `splits` a power of two; if more than 1, all blocks, rows * groups * splits, must fit the device
// at once.
inline constexpr int kManyHeadsGroup = 64;
inline constexpr int kFewHeadsGroup = 16;
constexpr int HeadGroups(std::int64_t heads, int group_heads) {
  return static_cast<int>((heads + group_heads - 1) / group_heads);
}
void RunManyHeads(const LatentAttentionParams& params, const AttentionParts& parts,
                  cudaStream_t stream);
void RunFewHeads(const LatentAttentionParams& params, const AttentionParts& parts,
                 cudaStream_t stream);

// Many rows of few sequences, as RunManyHeads of one range, and bit for bit its output: latents are
// converted once, where a sequence has rows enough and `latents` room, and gathered as halves.
// bfloat16 with rows of whole 16 bytes over an fp8 cache.
void RunChunk(const LatentAttentionParams& params, const LatentRows& latents, int multiprocessors,
              cudaStream_t stream);

}  // namespace dsa::cuda
