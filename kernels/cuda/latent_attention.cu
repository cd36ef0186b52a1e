// LatentAttention: which kernel serves it, and how rows are split (ChooseKernel, PlanSplits below).
// bfloat16 queries run on the tensor cores: over the fp8 cache by latent_attention_many_heads.cu,
// _few_heads.cu or, many rows of many heads, _chunks.cu, else by latent_attention_tensor.cu.
// Float32 queries, and a float32 cache, go in float32 without them, here:
//
//   block   8 heads of a row and a range of its keys, 32 keys a turn
//   scores  warp h, lane j: head h meets key j, 32 products at a time added up before they join
//   values  thread i: latent values i and i + 256 of all heads
//
// With few rows a row's keys are split over several blocks, which leave their parts in scratch, to
// be joined in order.
#include "common/view_parts.h"
#include "kernels/cuda/attention_keys.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch_arena.h"

#include <algorithm>
#include <bit>

namespace dsa {
namespace {

constexpr int kHeads = 8;
constexpr int kThreads = kHeads * cuda::kWarpSize;
constexpr int kTurnKeys = cuda::kWarpSize;
constexpr int kKeyStride = cuda::kRecordValues + 1;  // a lane per key meets all banks
constexpr int kThreadValues = kLatentValues / kThreads;
constexpr int kJoinThreads = 128;
constexpr int kTensorHeadsMax = 64;  // of a block, on either way

struct Shared {
  float q[kHeads][cuda::kRecordValues];
  float keys[kTurnKeys][kKeyStride];
  float probabilities[kHeads][kTurnKeys];
  float factors[kHeads];
  float sums[kHeads];
};

__device__ float Dot(const float* q, const float* key) {
  float total = 0.0F;
  for (int first = 0; first < cuda::kRecordValues; first += 32) {
    float sum = 0.0F;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      sum = fmaf(q[first + i], key[first + i], sum);
    }
    total += sum;
  }
  return total;
}

template <typename T, KvFormat kFormat>
__global__ __launch_bounds__(kThreads) void PlainAttentionKernel(
    const __grid_constant__ LatentAttentionParams p, cuda::AttentionParts parts, int groups) {
  extern __shared__ __align__(16) std::uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const std::int64_t row = blockIdx.y;
  const int first_head = static_cast<int>(blockIdx.x) % groups * kHeads;
  const int split = static_cast<int>(blockIdx.x) / groups;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int head = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int heads = static_cast<int>(p.q_latent.heads);
  const int thread = static_cast<int>(threadIdx.x);

  const cuda::RowKeys keys = cuda::KeysOf(p.rows, p.selection, row);
  const int blocks = (keys.count + cuda::kKeyBlock - 1) / cuda::kKeyBlock;
  const int split_keys = (blocks + parts.splits - 1) / parts.splits * cuda::kKeyBlock;
  const int first = split * split_keys;
  const int last = min(keys.count, first + split_keys);

  // Queries.
  for (int i = thread; i < kHeads * cuda::kRecordValues; i += kThreads) {
    const int h = first_head + i / cuda::kRecordValues;
    const int value = i % cuda::kRecordValues;
    float q = 0.0F;
    if (h < heads) {
      q = value < kLatentValues
              ? cuda::ToFloat(static_cast<const T*>(
                    p.q_latent
                        .data)[row * p.q_latent.row_stride + h * p.q_latent.head_stride + value])
              : cuda::ToFloat(static_cast<const T*>(
                    p.q_rope.data)[row * p.q_rope.row_stride + h * p.q_rope.head_stride + value -
                                   kLatentValues]);
    }
    shared.q[i / cuda::kRecordValues][value] = q;
  }
  const auto scale = static_cast<float>(p.softmax_scale);
  float outputs[kHeads][kThreadValues] = {};
  float maximum = -INFINITY;  // of the warp's head
  float sum = 0.0F;           // of the lane's keys
  for (int turn = first; turn < last; turn += kTurnKeys) {
    // Keys.
    __syncthreads();
    for (int key = head; key < kTurnKeys; key += kHeads) {
      if (turn + key < last) {
        const std::int64_t slot = keys.Slot(turn + key);
        for (int i = lane; i < cuda::kRecordValues; i += cuda::kWarpSize) {
          shared.keys[key][i] = cuda::LatentValue<kFormat>(p.cache.data, slot, i);
        }
      } else {
        for (int i = lane; i < cuda::kRecordValues; i += cuda::kWarpSize) {
          shared.keys[key][i] = 0.0F;
        }
      }
    }
    __syncthreads();

    // Scores.
    const float score =
        turn + lane < last ? Dot(shared.q[head], shared.keys[lane]) * scale : -INFINITY;
    const float larger = fmaxf(maximum, cuda::WarpMax(score));
    const float factor = expf(maximum - larger);
    const float power = expf(score - larger);
    maximum = larger;
    sum = sum * factor + power;
    shared.probabilities[head][lane] = cuda::Rounded<T>(power);
    if (lane == 0) {
      shared.factors[head] = factor;
    }
    __syncthreads();

    // Values.
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int v = 0; v < kThreadValues; ++v) {
        outputs[h][v] *= shared.factors[h];
      }
    }
    float added[kHeads][kThreadValues] = {};
    for (int key = 0; key < kTurnKeys; ++key) {
#pragma unroll
      for (int v = 0; v < kThreadValues; ++v) {
        const float value = shared.keys[key][thread + v * kThreads];
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          added[h][v] = fmaf(shared.probabilities[h][key], value, added[h][v]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int v = 0; v < kThreadValues; ++v) {
        outputs[h][v] += added[h][v];
      }
    }
  }

  sum = cuda::WarpSum(sum);
  if (lane == 0) {
    shared.sums[head] = sum;
    if (parts.splits > 1 && first_head + head < heads) {
      parts.maxima[(row * parts.splits + split) * heads + first_head + head] = {maximum, sum};
    }
  }
  __syncthreads();
  for (int h = 0; h < kHeads && first_head + h < heads; ++h) {
#pragma unroll
    for (int v = 0; v < kThreadValues; ++v) {
      const int value = thread + v * kThreads;
      if (parts.splits > 1) {
        parts.outputs[((row * parts.splits + split) * heads + first_head + h) * kLatentValues +
                      value] = outputs[h][v];
      } else {
        static_cast<T*>(p.o_latent.data)[row * p.o_latent.row_stride +
                                         (first_head + h) * p.o_latent.head_stride + value] =
            cuda::FromFloat<T>(first < last ? outputs[h][v] / shared.sums[h] : 0.0F);
      }
    }
  }
}

// The ranges of a row and head, in order.  Grid: heads, rows.
template <typename T>
__global__ __launch_bounds__(kJoinThreads) void JoinPartsKernel(
    const __grid_constant__ LatentAttentionParams p, cuda::AttentionParts parts) {
  const std::int64_t row = blockIdx.y;
  const int head = static_cast<int>(blockIdx.x);
  const std::int64_t heads = p.q_latent.heads;
  const auto part = [&](int split) { return (row * parts.splits + split) * heads + head; };
  float maximum = -INFINITY;
  for (int split = 0; split < parts.splits; ++split) {
    const float2 range = parts.maxima[part(split)];
    maximum = range.y == 0.0F ? maximum : fmaxf(maximum, range.x);
  }
  constexpr int kValues = kLatentValues / kJoinThreads;
  const int first = static_cast<int>(threadIdx.x) * kValues;
  float outputs[kValues] = {};
  float sum = 0.0F;
  for (int split = 0; split < parts.splits; ++split) {
    const float2 range = parts.maxima[part(split)];
    if (range.y == 0.0F) {
      continue;
    }
    const float factor = parts.is_binary ? exp2f(range.x - maximum) : expf(range.x - maximum);
    const auto values =
        cuda::LoadPack<kValues>(parts.outputs + part(split) * kLatentValues + first);
    sum = fmaf(range.y, factor, sum);
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      outputs[i] = fmaf(values.values[i], factor, outputs[i]);
    }
  }
  T* target = static_cast<T*>(p.o_latent.data) + row * p.o_latent.row_stride +
              head * p.o_latent.head_stride + first;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    target[i] = cuda::FromFloat<T>(sum == 0.0F ? 0.0F : outputs[i] / sum);
  }
}

template <typename T, KvFormat kFormat>
void LaunchPlain(const LatentAttentionParams& params, const cuda::AttentionParts& parts,
                 cudaStream_t stream) {
  const auto kernel = PlainAttentionKernel<T, kFormat>;
  DSA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(sizeof(Shared))));
  const auto groups = static_cast<int>((params.q_latent.heads + kHeads - 1) / kHeads);
  const dim3 grid(static_cast<unsigned>(groups * parts.splits),
                  static_cast<unsigned>(params.q_latent.rows));
  kernel<<<grid, kThreads, sizeof(Shared), stream>>>(params, parts, groups);
  DSA_CUDA_CHECK(cudaGetLastError());
}

cuda::AttentionParts TakeParts(cuda::ScratchArena& arena, std::int64_t row_heads, int splits,
                               bool is_binary) {
  const std::int64_t parts = splits > 1 ? row_heads * splits : 0;
  return {.outputs = arena.Take<float>(parts * kLatentValues),
          .maxima = arena.Take<float2>(parts),
          .splits = splits,
          .is_binary = is_binary,
          .counters = nullptr,
          .logs = nullptr};
}

cuda::AttentionParts FewHeadsParts(float* memory, int splits) {
  static_assert(cuda::kFewHeadsPartValues ==
                std::int64_t{cuda::kMultiprocessors} * cuda::kFewHeadsGroup * kLatentValues);
  return {.outputs = memory,
          .maxima = nullptr,
          .splits = splits,
          .is_binary = true,
          .counters = nullptr,
          .logs = memory + cuda::kFewHeadsPartValues};
}

enum class Kernel : std::uint8_t { kPlain, kTensor, kManyHeads, kFewHeads };

Kernel ChooseKernel(const LatentAttentionParams& params) {
  if (params.q_latent.type != DataType::kBf16 || params.cache.format == KvFormat::kF32) {
    return Kernel::kPlain;
  }
  const bool has_aligned_rows = cuda::HasAlignedRows(params.q_latent) &&
                                cuda::HasAlignedRows(params.q_rope) &&
                                cuda::HasAlignedRows(params.o_latent);
  if (params.cache.format != KvFormat::kFp8 || !has_aligned_rows) {
    return Kernel::kTensor;
  }
  return params.q_latent.heads <= cuda::kFewHeadsGroup ? Kernel::kFewHeads : Kernel::kManyHeads;
}

std::int64_t GroupsOf(Kernel kernel, std::int64_t heads) {
  switch (kernel) {
    case Kernel::kTensor: return cuda::TensorAttentionGroups(heads);
    case Kernel::kManyHeads: return cuda::HeadGroups(heads, cuda::kManyHeadsGroup);
    case Kernel::kFewHeads: return cuda::HeadGroups(heads, cuda::kFewHeadsGroup);
    case Kernel::kPlain: break;
  }
  return (heads + kHeads - 1) / kHeads;
}

struct Splits {
  std::int64_t rows;  // of a launch
  int splits;         // of a row
};

// By default as many ranges as fill the device: equal batches give equal bits, and a row's bits
// beside other numbers of rows differ by rounding.  Batch-invariant: always the same number, and as
// many rows a launch as still run at once.
Splits PlanSplits(std::int64_t rows, std::int64_t groups, int multiprocessors,
                  bool batch_invariant) {
  constexpr int kInvariantSplits = 4;
  const std::int64_t blocks = std::min(multiprocessors, cuda::kMultiprocessors);
  if (batch_invariant) {
    DSA_CHECK(groups * kInvariantSplits <= blocks, "LatentAttention: {} groups of heads", groups);
    return {.rows = blocks / (groups * kInvariantSplits), .splits = kInvariantSplits};
  }
  const std::int64_t fit = std::clamp<std::int64_t>(blocks / (rows * groups), 1, cuda::kSplitsMax);
  return {.rows = rows, .splits = static_cast<int>(std::bit_floor(static_cast<unsigned>(fit)))};
}

// Blocks of the cache that a chunk's latents may take as halves: the longest window, and as many
// keys again as a step has rows.
constexpr std::int64_t kChunkRowsMin = 512;
std::int64_t ConvertedBlocks(const ScratchLimits& limits) {
  if (limits.tokens_max < kChunkRowsMin || limits.heads <= cuda::kFewHeadsGroup) {
    return 0;
  }
  constexpr std::int64_t kKeysMax = 163840;
  return (std::min(limits.context_max, kKeysMax) + limits.tokens_max) / kTokensPerBlock + 1;
}

// More rows than the sequences could decode with, so never a step that only decodes.
bool IsChunk(const LatentAttentionParams& params, Kernel kernel, const Splits& splits,
             const ScratchLimits& limits) {
  return kernel == Kernel::kManyHeads && splits.splits == 1 &&
         params.q_latent.rows >= kChunkRowsMin &&
         params.q_latent.rows > kRowGroupMax * params.rows.block_tables.rows &&
         ConvertedBlocks(limits) > 0 &&
         params.rows.block_tables.rows <= cuda::kConvertedSequencesMax &&
         params.cache.blocks <= cuda::kConvertedCacheBlocks;
}

LatentAttentionParams RowsOf(const LatentAttentionParams& params, std::int64_t first,
                             std::int64_t count) {
  LatentAttentionParams part = params;
  part.q_latent = RowsOfAny(params.q_latent, first, count);
  part.q_rope = RowsOfAny(params.q_rope, first, count);
  part.o_latent = RowsOfAny(params.o_latent, first, count);
  part.rows = dsa::RowsOf(params.rows, first, count);
  part.rows.group = 1;
  if (params.selection.slots.data != nullptr) {
    part.selection.slots = dsa::RowsOf(params.selection.slots, first, count);
    part.selection.counts = dsa::RowsOf(params.selection.counts, first, count);
  }
  return part;
}

void LaunchJoin(const LatentAttentionParams& params, const cuda::AttentionParts& parts,
                cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.q_latent.heads),
                  static_cast<unsigned>(params.q_latent.rows));
  cuda::DispatchFloat(params.o_latent.type, [&]<typename T>(T) {
    JoinPartsKernel<T><<<grid, kJoinThreads, 0, stream>>>(params, parts);
  });
  DSA_CUDA_CHECK(cudaGetLastError());
}

void Launch(Kernel kernel, const LatentAttentionParams& params, const cuda::AttentionParts& parts,
            cudaStream_t stream) {
  switch (kernel) {
    case Kernel::kManyHeads: cuda::RunManyHeads(params, parts, stream); return;
    case Kernel::kFewHeads: cuda::RunFewHeads(params, parts, stream); return;
    case Kernel::kTensor: cuda::RunTensorAttention(params, parts, stream); break;
    case Kernel::kPlain:
      cuda::DispatchFloat(params.q_latent.type, [&]<typename T>(T) {
        cuda::DispatchFormat(params.cache.format, [&]<KvFormat kFormat>() {
          LaunchPlain<T, kFormat>(params, parts, stream);
        });
      });
      break;
  }
  if (parts.splits > 1) {
    LaunchJoin(params, parts, stream);
  }
}

}  // namespace

std::int64_t cuda::LatentAttentionScratchBytes(const ScratchLimits& limits) {
  ScratchArena parts;  // splits * rows * groups of heads are at most the multiprocessors
  TakeParts(parts, kTensorHeadsMax, kMultiprocessors, true);
  ScratchArena latents;
  TakeLatentRows(latents, ConvertedBlocks(limits));
  return std::max(parts.used(), latents.used());
}

void cuda::LatentAttention(const LatentAttentionParams& params, const AttentionMeans& means,
                           cudaStream_t stream) {
  const LatentAttentionExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  const Kernel kernel = ChooseKernel(params);
  const std::int64_t groups = GroupsOf(kernel, extents.heads);
  const Splits plan =
      PlanSplits(extents.tokens, groups, means.multiprocessors, means.batch_invariant);
  if (IsChunk(params, kernel, plan, means.limits)) {
    cuda::ScratchArena arena(means.scratch);
    const cuda::LatentRows latents = cuda::TakeLatentRows(arena, ConvertedBlocks(means.limits));
    arena.CheckFits("LatentAttention");
    cuda::RunChunk(params, latents, means.multiprocessors, stream);
    return;
  }
  const std::int64_t heads =
      kernel == Kernel::kManyHeads ? groups * cuda::kManyHeadsGroup : extents.heads;
  cuda::ScratchArena arena(means.scratch);
  cuda::AttentionParts parts = kernel == Kernel::kFewHeads
                                   ? FewHeadsParts(means.few_heads_parts, plan.splits)
                                   : TakeParts(arena, std::min(extents.tokens, plan.rows) * heads,
                                               plan.splits, kernel != Kernel::kPlain);
  parts.counters = means.counters;
  arena.CheckFits("LatentAttention");
  for (std::int64_t first = 0; first < extents.tokens; first += plan.rows) {
    const std::int64_t count = std::min(plan.rows, extents.tokens - first);
    Launch(kernel, RowsOf(params, first, count), parts, stream);
  }
}

}  // namespace dsa
