// MaskedAttention: a plan made on the device, then one kernel of resident blocks that goes through
// the plan's windows:
//
//   1. latents of the window's keys to dense rows
//   2. for some heads at a time: their keys and values        (barrier over the grid before and
//   3. the window's rows attend to them                         after, or counters: below)
//
// bfloat16 over a cache of fp8 or bfloat16 runs on the tensor cores, heads of 128 keys and values
// by warpgroups (masked_attention_warpgroup.cu), others by warps (masked_attention_tensor.cuh);
// anything else in float32 without them (masked_attention_plain.cuh).  Keys are visited in
// ascending order, as many at a time as the kernel's tile has, from position 0 on: a row's bits
// depend on its query, its keys and its selection alone.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/masked_attention.h"
#include "kernels/cuda/masked_attention_plain.cuh"
#include "kernels/cuda/masked_attention_tensor.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scratch_arena.h"

#include <algorithm>

#include <cooperative_groups.h>

namespace dsa {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 256;
constexpr std::int64_t kHeadsAtOnce = 32;
constexpr int kWidthUnit = 8;  // values of 16 bytes

template <typename Method>
__device__ void RunWindows(const MaskedAttentionParams& p, const cuda::MaskedScratch& scratch,
                           const Method& method,
                           void (*gather)(const MaskedAttentionParams&, const cuda::MaskedScratch&,
                                          const cuda::AttentionWindow&)) {
  cg::grid_group grid = cg::this_grid();
  const int heads = static_cast<int>(p.q.heads);
  const int windows = *scratch.window_count;
  for (int i = 0; i < windows; ++i) {
    const cuda::AttentionWindow window = scratch.windows[i];
    gather(p, scratch, window);
    grid.sync();
    for (int head = 0; head < heads; head += scratch.heads) {
      const int count = min(scratch.heads, heads - head);
      method.Expand(window, head, count);
      grid.sync();
      method.AttendAll(window, head, count);
      grid.sync();
    }
  }
}

template <int kValues, KvFormat kFormat>
__global__ __launch_bounds__(kThreads, 1) void TensorMaskedKernel(
    const __grid_constant__ MaskedAttentionParams p,
    const __grid_constant__ cuda::MaskedScratch scratch) {
  extern __shared__ __align__(16) std::uint8_t memory[];
  RunWindows(p, scratch, cuda::MaskedTile<kValues>{p, scratch, memory},
             cuda::GatherLatents<__nv_bfloat16, kFormat>);
}

template <typename T, typename W, KvFormat kFormat>
__global__ __launch_bounds__(kThreads) void PlainMaskedKernel(
    const __grid_constant__ MaskedAttentionParams p,
    const __grid_constant__ cuda::MaskedScratch scratch) {
  using Method = cuda::PlainMasked<T, W>;
  __shared__ typename Method::Shared shared;
  RunWindows(p, scratch, Method{p, scratch, shared}, cuda::GatherLatents<float, kFormat>);
}

struct ScratchShape {
  std::int64_t tokens;
  std::int64_t keys;  // of a window
  std::int64_t heads;
  std::int64_t nope;
  std::int64_t value;
  std::int64_t element_bytes;  // of expanded keys and values
  std::int64_t latent_bytes;   // of an element of latents
};

cuda::MaskedScratch TakeScratch(cuda::ScratchArena& arena, const ScratchShape& shape) {
  const auto width = [](std::int64_t values) {
    return (values + kWidthUnit * 2 - 1) / (kWidthUnit * 2) * kWidthUnit * 2;
  };
  cuda::MaskedScratch scratch = {};
  scratch.runs = arena.Take<cuda::AttentionRun>(shape.tokens);
  scratch.windows = arena.Take<cuda::AttentionWindow>(shape.tokens);
  scratch.window_count = arena.Take<int>(1);
  const std::int64_t key_tiles = shape.keys / cuda::kWarpgroupTile;
  const std::int64_t row_tiles = shape.tokens / cuda::kWarpgroupTile + key_tiles + 1;
  scratch.tiles = arena.Take<cuda::AttentionTile>(row_tiles);
  scratch.tile_masks = arena.Take<cuda::TileMask>(row_tiles * key_tiles);
  scratch.counter_count = static_cast<int>(cuda::kMaskedCounters + shape.heads);
  scratch.counters = arena.Take<unsigned>(scratch.counter_count);
  scratch.latents = arena.Take<std::uint8_t>(shape.keys * kLatentValues * shape.latent_bytes);
  scratch.ropes = arena.Take<std::uint8_t>(shape.keys * kLatentRopeValues * shape.latent_bytes);
  const std::int64_t heads =
      std::min(shape.heads, std::max<std::int64_t>(1, kHeadsAtOnce * 2 / shape.element_bytes));
  scratch.expanded_keys =
      arena.Take<std::uint8_t>(shape.keys * heads * width(shape.nope) * shape.element_bytes);
  scratch.expanded_values =
      arena.Take<std::uint8_t>(shape.keys * heads * width(shape.value) * shape.element_bytes);
  scratch.keys_max = shape.keys;
  scratch.heads = static_cast<int>(heads);
  scratch.key_width = static_cast<int>(width(shape.nope));
  scratch.value_width = static_cast<int>(width(shape.value));
  return scratch;
}

// As many as a row may see, and as many again as a step has tokens: short runs share a window.
// Whole tiles of any of the kernels.
std::int64_t WindowKeys(const ScratchLimits& limits) {
  const std::int64_t keys = limits.masked_context_max + limits.tokens_max + cuda::kMaskBits;
  return (keys + cuda::kWarpgroupTile - 1) / cuda::kWarpgroupTile * cuda::kWarpgroupTile;
}

// As many blocks as fit at once.
template <typename Kernel>
void LaunchResident(Kernel kernel, int shared_bytes, const MaskedAttentionParams& params,
                    const cuda::MaskedScratch& scratch, cudaStream_t stream) {
  DSA_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  int blocks = 0;
  DSA_CUDA_CHECK(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, shared_bytes));
  DSA_CHECK(blocks > 0, "MaskedAttention: N={} V={} with {} bytes of shared memory do not fit",
            params.w_uk.heads, params.w_uv.heads, shared_bytes);
  void* arguments[] = {const_cast<MaskedAttentionParams*>(&params),
                       const_cast<cuda::MaskedScratch*>(&scratch)};
  DSA_CUDA_CHECK(cudaLaunchCooperativeKernel(
      reinterpret_cast<const void*>(kernel),
      dim3(static_cast<unsigned>(std::min(blocks, 2) * cuda::kMultiprocessors)), dim3(kThreads),
      arguments, static_cast<std::size_t>(shared_bytes), stream));
}

template <int kValues>
int TensorBytes(const cuda::MaskedScratch& scratch) {
  return std::max(cuda::MaskedTile<kValues>::SharedBytes(scratch),
                  cuda::RowProduct<__nv_bfloat16, cuda::kMaskBits>::kSharedBytes);
}

template <int kValues>
void LaunchTensor(const MaskedAttentionParams& params, const cuda::MaskedScratch& scratch,
                  cudaStream_t stream) {
  params.cache.format == KvFormat::kFp8
      ? LaunchResident(TensorMaskedKernel<kValues, KvFormat::kFp8>, TensorBytes<kValues>(scratch),
                       params, scratch, stream)
      : LaunchResident(TensorMaskedKernel<kValues, KvFormat::kBf16>, TensorBytes<kValues>(scratch),
                       params, scratch, stream);
}

constexpr std::int64_t kTensorValuesMax = 256;

}  // namespace

std::int64_t cuda::MaskedAttentionScratchBytes(const ScratchLimits& limits) {
  if (limits.masked_context_max == 0) {
    return 0;
  }
  std::int64_t bytes = 0;
  for (const std::int64_t element_bytes : {2, 4}) {
    ScratchArena arena;
    TakeScratch(arena, {.tokens = limits.tokens_max,
                        .keys = WindowKeys(limits),
                        .heads = limits.heads,
                        .nope = limits.nope,
                        .value = limits.value,
                        .element_bytes = element_bytes,
                        .latent_bytes = 4});
    bytes = std::max(bytes, arena.used());
  }
  return bytes;
}

void cuda::MaskedAttention(const MaskedAttentionParams& params, const ScratchLimits& limits,
                           const DeviceBuffer& memory, cudaStream_t stream) {
  const MaskedAttentionExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  DSA_CHECK(limits.masked_context_max > 0, "MaskedAttention: no scratch, masked_context_max={}",
            limits.masked_context_max);
  const bool is_tensor = params.q.type == DataType::kBf16 && params.w_uk.type == DataType::kBf16 &&
                         params.w_uv.type == DataType::kBf16 &&
                         params.cache.format != KvFormat::kF32 && extents.value <= kTensorValuesMax;
  cuda::ScratchArena arena(memory);
  cuda::MaskedScratch scratch = TakeScratch(arena, {.tokens = extents.tokens,
                                                    .keys = WindowKeys(limits),
                                                    .heads = extents.heads,
                                                    .nope = extents.nope,
                                                    .value = extents.value,
                                                    .element_bytes = SizeOf(params.q.type),
                                                    .latent_bytes = is_tensor ? 2 : 4});
  arena.CheckFits("MaskedAttention");
  const bool is_warpgroup = cuda::MaskedWarpgroupTakes(params);
  static_assert(cuda::MaskedTile<128>::kRows == cuda::kWarpgroupTile);
  scratch.rows_of_tile = cuda::kWarpgroupTile;
  scratch.keys_of_tile = is_warpgroup ? cuda::kWarpgroupTile : cuda::kMaskBits;
  cuda::LaunchDependent(cuda::PlanRunsKernel, {.grid = dim3(1), .threads = cuda::kPlanThreads},
                        stream, params.rows, scratch);
  if (is_warpgroup) {
    cuda::MaskedWarpgroup(params, scratch, stream);
    return;
  }
  if (is_tensor) {
    extents.value <= 128 ? LaunchTensor<128>(params, scratch, stream)
                         : LaunchTensor<kTensorValuesMax>(params, scratch, stream);
    return;
  }
  constexpr std::int64_t kWidthMax = cuda::PlainMasked<float, float>::kWidthMax;
  DSA_CHECK(extents.nope + kLatentRopeValues <= kWidthMax && extents.value <= kWidthMax,
            "MaskedAttention: N={} V={}, limits {} and {}", extents.nope, extents.value,
            kWidthMax - kLatentRopeValues, kWidthMax);
  DSA_CHECK(params.w_uk.type == params.w_uv.type, "MaskedAttention: w_uk has type {}, w_uv {}",
            static_cast<int>(params.w_uk.type), static_cast<int>(params.w_uv.type));
  cuda::DispatchFloat(params.q.type, [&]<typename T>(T) {
    cuda::DispatchFloat(params.w_uk.type, [&]<typename W>(W) {
      cuda::DispatchFormat(params.cache.format, [&]<KvFormat kFormat>() {
        LaunchResident(PlainMaskedKernel<T, W, kFormat>, 0, params, scratch, stream);
      });
    });
  });
}

}  // namespace dsa
