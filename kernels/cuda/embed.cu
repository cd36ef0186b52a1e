// Embed and GatherRows: one block of 256 threads a row, a thread moves 8 columns at a time and asks
// for up to 32 before it uses the first.  Not more blocks a row: the rows of a large table lie on
// pages that the translation of addresses has forgotten, and each block would ask again.
//
// 2 * T * D elements move; memory-bound, and small beside a layer.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/embed.h"
#include "kernels/ops/gather_rows.h"

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 8;
constexpr int kLoads = 4;

// target[t] = source[rows[t]], from type S to type T.
template <typename S, typename T>
__global__ __launch_bounds__(kThreads) void CopyRowsKernel(ConstAnyMatrix source,
                                                           const std::int32_t* rows,
                                                           AnyMatrix target) {
  cuda::StartAfterPredecessors();
  constexpr int kStep = kThreads * kWidth;
  const std::int64_t row = blockIdx.x;
  const S* from = static_cast<const S*>(source.data) + rows[row] * source.row_stride;
  T* to = static_cast<T*>(target.data) + row * target.row_stride;
  const std::int64_t packed_cols = target.cols - target.cols % kWidth;
  for (std::int64_t first = threadIdx.x * kWidth; first < packed_cols; first += kLoads * kStep) {
    cuda::Pack<S, kWidth> loaded[kLoads];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      if (first + load * kStep < packed_cols) {
        loaded[load] = cuda::LoadPack<kWidth>(from + first + load * kStep);
      }
    }
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      if (first + load * kStep < packed_cols) {
        cuda::Pack<T, kWidth> converted;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          converted.values[i] = cuda::FromFloat<T>(cuda::ToFloat(loaded[load].values[i]));
        }
        cuda::StorePack(to + first + load * kStep, converted);
      }
    }
  }
  const std::int64_t last = packed_cols + threadIdx.x;
  if (last < target.cols) {
    to[last] = cuda::FromFloat<T>(cuda::ToFloat(from[last]));
  }
}

void CopyRows(const ConstAnyMatrix& source, const std::int32_t* rows, const AnyMatrix& target,
              cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(target.rows);
  cuda::DispatchFloat(source.type, [&]<typename S>(S) {
    cuda::DispatchFloat(target.type, [&]<typename T>(T) {
      cuda::LaunchDependent(CopyRowsKernel<S, T>, {.grid = grid, .threads = kThreads}, stream,
                            source, rows, target);
    });
  });
}

}  // namespace

void cuda::Embed(const EmbedParams& params, cudaStream_t stream) {
  const EmbedExtents extents = Validate(params);
  if (extents.tokens > 0) {
    CopyRows(params.table, params.ids.data, params.x, stream);
  }
}

void cuda::GatherRows(const GatherRowsParams& params, cudaStream_t stream) {
  const GatherRowsExtents extents = Validate(params);
  if (extents.rows > 0) {
    CopyRows(params.x, params.rows.data, params.y, stream);
  }
}

}  // namespace dsa
