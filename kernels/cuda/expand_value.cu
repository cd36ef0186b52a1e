// ExpandValue: per head a product of [T, 512] latents with [V, 512] weights.  bfloat16 runs on the
// tensor cores (row_product.cuh), other types in float32 without them (plain_product.cuh).
//
// With few rows the weights' 2 H V 512 bytes are the bound; the first stages of them are read
// before the kernels ahead have ended.  Where the output has an fp8 copy, expand_and_quantize.cu;
// fp8 weights, expand_fp8.cu.
#include "kernels/cuda/attend_latent.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plain_product.cuh"
#include "kernels/cuda/row_product.cuh"
#include "kernels/ops/expand_value.h"

namespace dsa {
namespace {

constexpr int kThreads = 256;

// Grid: tiles of the head's values, tiles of tokens, heads.
template <int kTokens>
__global__ __launch_bounds__(kThreads) void ExpandValueKernel(
    const __grid_constant__ ExpandValueParams p, bool is_aligned) {
  using Product = cuda::RowProduct<__nv_bfloat16, kTokens>;
  extern __shared__ __align__(16) std::uint8_t shared[];
  cuda::ptx::AllowSuccessor();
  const std::int64_t first_value = blockIdx.x * std::int64_t{Product::kWeightRows};
  const std::int64_t first_token = blockIdx.y * std::int64_t{kTokens};
  const std::int64_t head = blockIdx.z;
  const int tokens = static_cast<int>(min(p.o.rows - first_token, std::int64_t{kTokens}));
  const int values =
      static_cast<int>(min(p.o.cols - first_value, std::int64_t{Product::kWeightRows}));
  constexpr std::int64_t kBytes = sizeof(__nv_bfloat16);
  const float* const results = Product::Multiply(
      shared,
      {.weight = static_cast<const std::uint8_t*>(p.w_uv.data) +
                 (head * p.w_uv.row_stride + first_value * p.w_uv.head_stride) * kBytes,
       .weight_stride = p.w_uv.head_stride * kBytes,
       .weight_rows = values,
       .weight_scales = nullptr,
       .x = static_cast<const std::uint8_t*>(p.o_latent.data) +
            (first_token * p.o_latent.row_stride + head * p.o_latent.head_stride) * kBytes,
       .x_stride = p.o_latent.row_stride * kBytes,
       .x_rows = nullptr,
       .tokens = tokens,
       .x_scales = nullptr,
       .x_scale_stride = 0,
       .row_bytes = kLatentValues * kBytes,
       .is_aligned = is_aligned},
      [] { cuda::ptx::WaitForPredecessors(); });

  // 16 lanes store a token's tile, eight values each.
  constexpr int kWidth = 8;
  constexpr int kLanes = Product::kWeightRows / kWidth;
  const int value = static_cast<int>(threadIdx.x) % kLanes * kWidth;
  auto* const output =
      static_cast<__nv_bfloat16*>(p.o.data) + head * p.o.head_stride + first_value + value;
  for (int token = static_cast<int>(threadIdx.x) / kLanes; token < tokens;
       token += kThreads / kLanes) {
    cuda::Pack<__nv_bfloat16, kWidth> rounded = {};
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (value + i < values) {
        rounded.values[i] =
            __float2bfloat16_rn(results[token * Product::kResultStride + value + i]);
      }
    }
    __nv_bfloat16* const to = output + (first_token + token) * p.o.row_stride;
    if (value + kWidth <= values) {
      cuda::StorePack(to, rounded);
    } else {
      for (int i = 0; value + i < values; ++i) {
        to[i] = rounded.values[i];
      }
    }
  }
}

template <typename T, typename W>
__global__ __launch_bounds__(kThreads) void PlainExpandValueKernel(
    const __grid_constant__ ExpandValueParams p) {
  cuda::StartAfterPredecessors();
  using Product = cuda::PlainProduct<T, W>;
  __shared__ typename Product::Shared shared;
  const std::int64_t first_value = blockIdx.x * std::int64_t{Product::kWeightRows};
  const std::int64_t first_token = blockIdx.y * std::int64_t{Product::kTokens};
  const std::int64_t head = blockIdx.z;
  T* output = static_cast<T*>(p.o.data) + first_token * p.o.row_stride + head * p.o.head_stride +
              first_value;
  Product::Run(
      shared,
      {.weight = static_cast<const W*>(p.w_uv.data) + head * p.w_uv.row_stride +
                 first_value * p.w_uv.head_stride,
       .weight_stride = p.w_uv.head_stride,
       .weight_column_stride = 1,
       .weight_rows =
           static_cast<int>(min(p.o.cols - first_value, std::int64_t{Product::kWeightRows})),
       .x = static_cast<const T*>(p.o_latent.data) + first_token * p.o_latent.row_stride +
            head * p.o_latent.head_stride,
       .x_stride = p.o_latent.row_stride,
       .x_rows = nullptr,
       .tokens = static_cast<int>(min(p.o.rows - first_token, std::int64_t{Product::kTokens})),
       .columns = kLatentValues},
      [&](int token, int row, float value) {
        output[token * p.o.row_stride + row] = cuda::FromFloat<T>(value);
      });
}

dim3 GridOf(const ExpandValueExtents& extents, int value_rows, int token_rows) {
  return {static_cast<unsigned>((extents.value + value_rows - 1) / value_rows),
          static_cast<unsigned>((extents.tokens + token_rows - 1) / token_rows),
          static_cast<unsigned>(extents.heads)};
}

template <int kTokens>
void Launch(const ExpandValueParams& params, const ExpandValueExtents& extents,
            cudaStream_t stream) {
  using Product = cuda::RowProduct<__nv_bfloat16, kTokens>;
  const auto kernel = ExpandValueKernel<kTokens>;
  DSA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      Product::kSharedBytes));
  cuda::LaunchDependent(kernel,
                        {.grid = GridOf(extents, Product::kWeightRows, kTokens),
                         .threads = kThreads,
                         .shared_bytes = Product::kSharedBytes},
                        stream, params,
                        cuda::HasAlignedRows(params.o_latent) && cuda::HasAlignedRows(params.w_uv));
}

}  // namespace

void cuda::ExpandValue(const ExpandValueParams& params, cudaStream_t stream) {
  const ExpandValueExtents extents = Validate(params);
  if (extents.tokens == 0 || extents.value == 0) {
    return;
  }
  if (params.w_uv.type == DataType::kFp8E4m3) {
    ExpandFp8(params, {}, stream);
  } else if (params.o_latent.type == DataType::kBf16 && params.w_uv.type == DataType::kBf16) {
    constexpr std::int64_t kFew = 8;
    extents.tokens <= kFew ? Launch<8>(params, extents, stream)
                           : Launch<64>(params, extents, stream);
  } else {
    cuda::DispatchFloat(params.o_latent.type, [&]<typename T>(T) {
      cuda::DispatchFloat(params.w_uv.type, [&]<typename W>(W) {
        using Product = cuda::PlainProduct<T, W>;
        cuda::LaunchDependent(
            PlainExpandValueKernel<T, W>,
            {.grid = GridOf(extents, Product::kWeightRows, Product::kTokens), .threads = kThreads},
            stream, params);
      });
    });
  }
}

}  // namespace dsa
