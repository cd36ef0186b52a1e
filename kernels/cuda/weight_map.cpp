#include "kernels/cuda/weight_map.h"

#include "kernels/cuda/launch.h"
#include "kernels/kv_layout.h"

namespace dsa::cuda {
namespace {

// Through the runtime, so that the binary does not link the driver.
decltype(&cuTensorMapEncodeTiled) FindEncode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  DSA_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                  cudaEnableDefault, &found));
  DSA_CHECK(found == cudaDriverEntryPointSuccess, "the driver lacks cuTensorMapEncodeTiled: {}",
            static_cast<int>(found));
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

}  // namespace

CUtensorMap WeightMap(const Matrix<const Fp8E4m3>& weight, int box_rows) {
  static const auto encode = FindEncode();
  CUtensorMap map;
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(weight.cols),
                                static_cast<cuuint64_t>(weight.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(weight.row_stride)};
  const cuuint32_t box[] = {kValuesPerScale, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<Fp8E4m3*>(weight.data), extents,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  DSA_CHECK(status == CUDA_SUCCESS, "tensor map of a weight [{}, {}], stride {}: error {}",
            weight.rows, weight.cols, weight.row_stride, static_cast<int>(status));
  return map;
}

}  // namespace dsa::cuda
