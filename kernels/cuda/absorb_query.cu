// AbsorbQuery: per head a product of [T, N] queries with [N, 512] weights, whose summed axis is the
// weight's rows.  bfloat16 runs on the tensor cores, one block of 256 threads a tile:
//
//   A   W_UK^T   [128 latent values, 64 of N]   transposed while it is read from shared memory
//   B   queries  [64 of N, kTokens]
//   C   128 x kTokens in float32, through shared memory to rows of the output
//
// Other types, and queries or weights whose rows are not aligned to 16 bytes, take float32 products
// without tensor cores.  A result's bits depend on its row alone.
//
// With few rows the weights' 2 H N 512 bytes are the bound; the first stages of them are read
// before the kernels ahead have ended.  RotateAndAbsorb rotates the queries' RoPE columns in the
// same launch.
#include "kernels/cuda/absorb_tile.cuh"
#include "kernels/cuda/attend_latent.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plain_product.cuh"
#include "kernels/kv_layout.h"
#include "kernels/ops/absorb_query.h"

namespace dsa {
namespace {

using cuda::absorb::kColumns;
using cuda::absorb::kColumnTiles;
using cuda::absorb::kDepth;
using cuda::absorb::kResultStride;
using cuda::absorb::kStages;
using cuda::absorb::kThreads;
using cuda::absorb::Rotation;
using cuda::absorb::Tile;

struct NoRotation {
  __device__ void Store() const {}
};

// Grid: tiles of latent values, tiles of tokens, heads.  kRotates: the queries' RoPE columns as
// well.
template <int kTokens, bool kRotates>
__global__ __launch_bounds__(kThreads) void AbsorbQueryKernel(
    const __grid_constant__ AbsorbQueryParams p, const __grid_constant__ RopeParams rope) {
  using T = Tile<kTokens>;
  extern __shared__ __align__(16) std::uint8_t shared[];
  const int first_column = static_cast<int>(blockIdx.x) * kColumns;
  const std::int64_t first_token = blockIdx.y * std::int64_t{kTokens};
  const std::int64_t head = blockIdx.z;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / cuda::kWarpSize;
  const int column = warp / T::kTokenWarps * T::kColumnTiles * 16;
  const int token = warp % T::kTokenWarps * T::kTokenTiles * 8;
  const int stages = (static_cast<int>(p.q_nope.cols) + kDepth - 1) / kDepth;
  typename T::Totals totals = {};
  cuda::ptx::AllowSuccessor();
  for (int stage = 0; stage < min(stages, kStages); ++stage) {
    T::LoadWeights(shared + stage * T::kStageBytes, p, stage * kDepth, first_column, head, thread);
  }
  cuda::ptx::WaitForPredecessors();
  T::LoadQueries(shared, p, 0, first_token, head, thread);
  cuda::ptx::CommitCopies();
  const auto rotation = [&] {
    if constexpr (kRotates) {
      return Rotation<kTokens>(rope, static_cast<int>(blockIdx.x), first_token, head, thread);
    } else {
      return NoRotation{};
    }
  }();
  for (int stage = 0; stage < stages; ++stage) {
    if (stage + 1 < stages) {
      std::uint8_t* const next = shared + (stage + 1) % kStages * T::kStageBytes;
      if (stage + 1 >= kStages) {
        T::LoadWeights(next, p, (stage + 1) * kDepth, first_column, head, thread);
      }
      T::LoadQueries(next, p, (stage + 1) * kDepth, first_token, head, thread);
    }
    cuda::ptx::CommitCopies();
    cuda::ptx::WaitForCopies<1>();
    __syncthreads();
    T::Multiply(shared + stage % kStages * T::kStageBytes, column, token, totals);
    __syncthreads();
  }
  auto* results = reinterpret_cast<float*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
#pragma unroll
  for (int m = 0; m < T::kColumnTiles; ++m) {
#pragma unroll
    for (int t = 0; t < T::kTokenTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        results[(token + t * 8 + lane % 4 * 2 + i % 2) * kResultStride + column + m * 16 +
                lane / 4 + i / 2 * 8] = totals[m][t][i];
      }
    }
  }
  __syncthreads();
  // 16 lanes store a token's tile.
  constexpr int kWidth = 8;
  constexpr int kLanes = kColumns / kWidth;
  const int value = static_cast<int>(threadIdx.x) % kLanes * kWidth;
  auto* const output = static_cast<__nv_bfloat16*>(p.q_latent.data) +
                       head * p.q_latent.head_stride + first_column + value;
#pragma unroll
  for (int first = 0; first < kTokens; first += kThreads / kLanes) {
    const int t = first + static_cast<int>(threadIdx.x) / kLanes;
    if (t < kTokens && first_token + t < p.q_latent.rows) {
      cuda::Pack<__nv_bfloat16, kWidth> rounded;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        rounded.values[i] = __float2bfloat16_rn(results[t * kResultStride + value + i]);
      }
      cuda::StorePack(output + (first_token + t) * p.q_latent.row_stride, rounded);
    }
  }
  rotation.Store();
}

template <typename T, typename W>
__global__ __launch_bounds__(kThreads) void PlainAbsorbQueryKernel(
    const __grid_constant__ AbsorbQueryParams p) {
  cuda::StartAfterPredecessors();
  using Product = cuda::PlainProduct<T, W>;
  __shared__ typename Product::Shared shared;
  const int first_column = static_cast<int>(blockIdx.x) * Product::kWeightRows;
  const std::int64_t first_token = blockIdx.y * std::int64_t{Product::kTokens};
  const std::int64_t head = blockIdx.z;
  T* output = static_cast<T*>(p.q_latent.data) + first_token * p.q_latent.row_stride +
              head * p.q_latent.head_stride + first_column;
  Product::Run(
      shared,
      {.weight = static_cast<const W*>(p.w_uk.data) + head * p.w_uk.row_stride + first_column,
       .weight_stride = 1,
       .weight_column_stride = p.w_uk.head_stride,
       .weight_rows = Product::kWeightRows,
       .x = static_cast<const T*>(p.q_nope.data) + first_token * p.q_nope.row_stride +
            head * p.q_nope.head_stride,
       .x_stride = p.q_nope.row_stride,
       .x_rows = nullptr,
       .tokens = static_cast<int>(min(p.q_nope.rows - first_token, std::int64_t{Product::kTokens})),
       .columns = static_cast<int>(p.q_nope.cols)},
      [&](int token, int row, float value) {
        output[token * p.q_latent.row_stride + row] = cuda::FromFloat<T>(value);
      });
}

template <int kTokens, bool kRotates>
void Launch(const AbsorbQueryParams& params, const RopeParams& rope, cudaStream_t stream) {
  const auto kernel = AbsorbQueryKernel<kTokens, kRotates>;
  DSA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      Tile<kTokens>::kSharedBytes));
  const dim3 grid(kColumnTiles, static_cast<unsigned>((params.q_nope.rows + kTokens - 1) / kTokens),
                  static_cast<unsigned>(params.q_nope.heads));
  cuda::LaunchDependent(
      kernel, {.grid = grid, .threads = kThreads, .shared_bytes = Tile<kTokens>::kSharedBytes},
      stream, params, rope);
}

template <bool kRotates>
void LaunchTensor(const AbsorbQueryParams& params, const RopeParams& rope, cudaStream_t stream) {
  constexpr std::int64_t kFew = 8;
  params.q_nope.rows <= kFew ? Launch<8, kRotates>(params, rope, stream)
                             : Launch<64, kRotates>(params, rope, stream);
}

bool TensorCoresTake(const AbsorbQueryParams& params) {
  return params.q_nope.type == DataType::kBf16 && params.w_uk.type == DataType::kBf16 &&
         cuda::HasAlignedRows(params.q_nope) && cuda::HasAlignedRows(params.w_uk);
}

}  // namespace

bool cuda::TakesRotateAndAbsorb(const RopeParams& rope, const AbsorbQueryParams& absorb) {
  return TensorCoresTake(absorb) && rope.x.type == DataType::kBf16;
}

bool cuda::RotateAndAbsorb(const RopeParams& rope, const AbsorbQueryParams& absorb,
                           cudaStream_t stream) {
  Validate(rope);
  const AbsorbQueryExtents extents = Validate(absorb);
  if (!TakesRotateAndAbsorb(rope, absorb)) {
    return false;
  }
  if (extents.tokens > 0) {
    LaunchTensor<true>(absorb, rope, stream);
  }
  return true;
}

void cuda::AbsorbQuery(const AbsorbQueryParams& params, cudaStream_t stream) {
  const AbsorbQueryExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  if (TensorCoresTake(params)) {
    LaunchTensor<false>(params, {}, stream);
    return;
  }
  cuda::DispatchFloat(params.q_nope.type, [&]<typename T>(T) {
    cuda::DispatchFloat(params.w_uk.type, [&]<typename W>(W) {
      using Product = cuda::PlainProduct<T, W>;
      const dim3 grid(
          kLatentValues / Product::kWeightRows,
          static_cast<unsigned>((extents.tokens + Product::kTokens - 1) / Product::kTokens),
          static_cast<unsigned>(extents.heads));
      cuda::LaunchDependent(PlainAbsorbQueryKernel<T, W>, {.grid = grid, .threads = kThreads},
                            stream, params);
    });
  });
}

}  // namespace dsa
