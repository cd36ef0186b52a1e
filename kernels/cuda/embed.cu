// Embed and GatherRows: one block a row, a thread copies every 256th column.
//
// 2 * T * D elements move; memory-bound, and small beside a layer.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"

namespace dsa {
namespace {

constexpr int kThreads = 256;

// target[t] = source[rows[t]], from type S to type T.
template <typename S, typename T>
__global__ __launch_bounds__(kThreads) void CopyRowsKernel(ConstAnyMatrix source,
                                                           const std::int32_t* rows,
                                                           AnyMatrix target) {
  const std::int64_t row = blockIdx.x;
  const S* from = static_cast<const S*>(source.data) + rows[row] * source.row_stride;
  T* to = static_cast<T*>(target.data) + row * target.row_stride;
  for (std::int64_t d = threadIdx.x; d < target.cols; d += kThreads) {
    to[d] = cuda::FromFloat<T>(cuda::ToFloat(from[d]));
  }
}

void CopyRows(const ConstAnyMatrix& source, const std::int32_t* rows, const AnyMatrix& target,
              cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(target.rows);
  cuda::DispatchFloat(source.type, [&]<typename S>(S) {
    cuda::DispatchFloat(target.type, [&]<typename T>(T) {
      CopyRowsKernel<S, T><<<grid, kThreads, 0, stream>>>(source, rows, target);
    });
  });
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void CudaBackend::Embed(const EmbedParams& params) {
  const EmbedExtents extents = Validate(params);
  if (extents.tokens > 0) {
    CopyRows(params.table, params.ids.data, params.x, state_->stream);
  }
}

void CudaBackend::GatherRows(const GatherRowsParams& params) {
  const GatherRowsExtents extents = Validate(params);
  if (extents.rows > 0) {
    CopyRows(params.x, params.rows.data, params.y, state_->stream);
  }
}

}  // namespace dsa
