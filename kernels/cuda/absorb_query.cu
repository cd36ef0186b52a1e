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

using cuda::absorb::kColumnTiles;
using cuda::absorb::kThreads;
using cuda::absorb::Tile;

// Grid: tiles of latent values, tiles of tokens, heads.  kRotates: the queries' RoPE columns as
// well.
template <int kTokens, bool kRotates>
__global__ __launch_bounds__(kThreads) void AbsorbQueryKernel(
    const __grid_constant__ AbsorbQueryParams p, const __grid_constant__ RopeParams rope) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  const cuda::absorb::Place at = {.column_tile = static_cast<int>(blockIdx.x),
                                  .first_token = blockIdx.y * std::int64_t{kTokens},
                                  .head = blockIdx.z};
  cuda::ptx::AllowSuccessor();
  cuda::absorb::LoadFirstWeights<kTokens>(p, at, shared);
  cuda::ptx::WaitForPredecessors();
  cuda::absorb::LoadFirstQueries<kTokens>(p, at, shared);
  if constexpr (kRotates) {
    cuda::absorb::Finish<kTokens>(
        p, at, shared,
        cuda::absorb::Rotation<kTokens>(rope, at.column_tile, at.first_token, at.head,
                                        static_cast<int>(threadIdx.x)));
  } else {
    cuda::absorb::Finish<kTokens>(p, at, shared, cuda::absorb::NoRotation{});
  }
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

bool cuda::TakesRotateAndAbsorb(const RotateAndAbsorbParams& params) {
  return TensorCoresTake(params.absorb) && params.rope.x.type == DataType::kBf16;
}

bool cuda::RotateAndAbsorb(const RotateAndAbsorbParams& params, cudaStream_t stream) {
  Validate(params.rope);
  const AbsorbQueryExtents extents = Validate(params.absorb);
  if (!TakesRotateAndAbsorb(params)) {
    return false;
  }
  if (extents.tokens > 0) {
    LaunchTensor<true>(params.absorb, params.rope, stream);
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
