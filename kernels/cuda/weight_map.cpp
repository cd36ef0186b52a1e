#include "kernels/cuda/weight_map.h"

#include "kernels/cuda/launch.h"
#include "kernels/kv_layout.h"

#include <cstddef>

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

constexpr std::size_t kAxesMax = 5;

CUtensorMap Encode(const void* data, CUtensorMapDataType type, std::int64_t element_bytes,
                   std::span<const MapAxis> axes) {
  static const auto encode = FindEncode();
  DSA_CHECK(!axes.empty() && axes.size() <= kAxesMax, "a tensor map of {} axes", axes.size());
  cuuint64_t extents[kAxesMax];
  cuuint64_t strides[kAxesMax];
  cuuint32_t box[kAxesMax];
  constexpr cuuint32_t kSteps[kAxesMax] = {1, 1, 1, 1, 1};
  for (std::size_t i = 0; i < axes.size(); ++i) {
    extents[i] = static_cast<cuuint64_t>(axes[i].extent);
    strides[i] = static_cast<cuuint64_t>(axes[i].stride * element_bytes);
    box[i] = static_cast<cuuint32_t>(axes[i].box);
  }
  CUtensorMap map;
  const CUresult status =
      encode(&map, type, static_cast<cuuint32_t>(axes.size()), const_cast<void*>(data), extents,
             strides + 1, box, kSteps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  DSA_CHECK(status == CUDA_SUCCESS, "tensor map of {} axes, {} x {}, stride {}: error {}",
            axes.size(), axes.front().extent, axes.back().extent, axes.back().stride,
            static_cast<int>(status));
  return map;
}

}  // namespace

CUtensorMap WeightMap(const Matrix<const Fp8E4m3>& weight, int box_rows) {
  const MapAxis axes[] = {{.extent = weight.cols, .stride = 1, .box = kValuesPerScale},
                          {.extent = weight.rows, .stride = weight.row_stride, .box = box_rows}};
  return Fp8Map(weight.data, axes);
}

CUtensorMap Fp8Map(const void* data, std::span<const MapAxis> axes) {
  return Encode(data, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, axes);
}

CUtensorMap Bf16Map(const void* data, std::span<const MapAxis> axes) {
  return Encode(data, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, axes);
}

}  // namespace dsa::cuda
