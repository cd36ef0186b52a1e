// GatedMlp: gate and up in one launch, SwiGLU and the fp8 copy of what down reads in the next.
//
// Activate: half a warp per row and block of 128 columns.  Reads 4 T I bytes, writes T I or 2 T I.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/quantize_fp8.cuh"
#include "kernels/cuda/swiglu.cuh"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kTasks = kThreads / cuda::kQuantizeLanes;
constexpr int kWidth = cuda::kQuantizeWidth;

struct ActivateParams {
  AnyMatrix gate;
  AnyMatrix up;
  QuantizedView y;
};

template <typename T>
__global__ __launch_bounds__(kThreads) void ActivateKernel(const __grid_constant__ ActivateParams p,
                                                           std::int64_t blocks) {
  cuda::StartAfterPredecessors();
  const std::int64_t task = blockIdx.x * std::int64_t{kTasks} + threadIdx.x / cuda::kQuantizeLanes;
  const bool has_task = task < p.gate.rows * blocks;  // all lanes stay, to exchange maxima
  const std::int64_t row = has_task ? task / blocks : 0;
  const std::int64_t block = has_task ? task % blocks : 0;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kQuantizeLanes;
  const std::int64_t first = block * kValuesPerScale + lane * kWidth;
  const bool has_values = has_task && first < p.gate.cols;
  float values[kWidth] = {};
  if (has_values) {
    const auto gates = cuda::LoadPack<kWidth>(static_cast<const T*>(p.gate.data) +
                                              row * p.gate.row_stride + first);
    const auto ups =
        cuda::LoadPack<kWidth>(static_cast<const T*>(p.up.data) + row * p.up.row_stride + first);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      values[i] = cuda::Rounded<T>(
          cuda::SwiGluOf(cuda::ToFloat(gates.values[i]), cuda::ToFloat(ups.values[i])));
    }
  }
  float scale = 0.0F;
  const auto codes = cuda::QuantizeBlock(values, p.y.format, scale);
  if (has_task && lane == 0) {
    p.y.scales.Row(row)[block] = scale;
  }
  if (has_values) {
    cuda::StorePack(p.y.values.Row(row) + first, codes);
  }
}

}  // namespace

void CudaBackend::GatedMlp(const GatedMlpParams& params) {
  const AnyMatrix& gate = params.inner.x;
  if (!params.down.quantized() || gate.cols % kWidth != 0 || gate.rows == 0) {
    Backend::GatedMlp(params);
    return;
  }
  Project({.x = params.x,
           .projections = {{{.weight = params.gate, .y = gate},
                            {.weight = params.up, .y = params.up_output}}}});
  const std::int64_t blocks = Fp8Blocks(gate.cols);
  const std::int64_t tasks = gate.rows * blocks;
  cuda::DispatchFloat(gate.type, [&]<typename T>(T) {
    cuda::LaunchDependent(
        ActivateKernel<T>,
        {.grid = static_cast<unsigned>((tasks + kTasks - 1) / kTasks), .threads = kThreads},
        state_->stream, ActivateParams{.gate = gate, .up = params.up_output, .y = params.inner.fp8},
        blocks);
  });
  Multiply(*this, params.inner, params.down, params.y);
}

}  // namespace dsa
