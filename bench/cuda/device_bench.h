// Times the CUDA backend's ops on the device against what the same card does at most, measured in
// the same run.  One thread; buffers belong to the backend given.
//
// A sample is the time between two events around one call, on the backend's stream.  Before each
// the L2 cache is filled with clean lines of other memory, which takes long enough for the host to
// queue the call behind it: what is timed is the device, gaps between the kernels of an op
// included, and not the host's launches.
#pragma once

#include "bench/harness.h"
#include "common/view.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ops/block_scaled_linear.h"

#include <cstdint>
#include <functional>
#include <string>

namespace dsa::bench {

// Microseconds of one call.
struct DeviceTiming {
  double median;
  double p10;
  double p90;
};

// What the card does at most, per microsecond.
struct CardCeilings {
  double copy_bytes;  // read and written
  double fp8_flops;
  double bf16_flops;
};

// A dense [rows, cols] matrix of random values.
struct DeviceOperand {
  DeviceBuffer buffer;
  AnyMatrix view;

  template <typename T>
  Matrix<T> As() const {
    return {.data = buffer.As<T>(),
            .rows = view.rows,
            .cols = view.cols,
            .row_stride = view.row_stride};
  }
};

// Rows of `heads` projections of the latent, `width` outputs each: [heads, width, 512].
ConstAnyTensor3 HeadWeight(const DeviceOperand& weight, std::int64_t heads, std::int64_t width);

class DeviceBench final {
 public:
  explicit DeviceBench(CudaBackend& backend);

  CudaBackend& backend() const { return backend_; }

  // Memory, or the end of the process.
  DeviceBuffer Allocate(std::int64_t bytes) const;
  DeviceBuffer Upload(const void* values, std::int64_t bytes) const;
  // Roughly normal with deviation 1; fp8 values span the type's range.
  DeviceOperand Random(DataType type, std::int64_t rows, std::int64_t cols) const;
  // Powers of two, 2^-7 and 2^-6.
  DeviceOperand RandomScales(std::int64_t rows, std::int64_t cols) const;
  // Fp8 indexer keys of `blocks` cache blocks.
  DeviceBuffer RandomIndexerKeys(std::int64_t blocks) const;
  // Fp8 latents of `blocks` cache blocks.
  DeviceBuffer RandomLatents(std::int64_t blocks) const;

  // Warms up, then takes 30 to 200 samples; at least 5 of what takes more than 10 ms.
  DeviceTiming Measure(const std::function<void()>& body) const;
  // Calls `prepare` before each sample, untimed.
  DeviceTiming Measure(const std::function<void()>& prepare,
                       const std::function<void()>& body) const;

  // Measures and prints the card's ceilings, which every row refers to; once, before the rows.
  void MeasureCeilings();
  CardCeilings ceilings() const {
    return {.copy_bytes = copy_bytes_per_us_,
            .fp8_flops = gemm_flops_per_us_,
            .bf16_flops = bf16_flops_per_us_};
  }
  void Heading(const std::string& text) const;
  // "rms_norm  T=64 D=7168  4.1 us [4.0, 4.6]  1.84 MB  447 GB/s  0.0 TFLOP/s  15 % of copy", the
  // ceiling whose time for the work is the longer.
  void Row(const std::string& op, const std::string& shape, const Work& work,
           const std::function<void()>& body) const;
  // The same of one of `count` calls in a recorded chain, as a step queues them; `body` is called
  // with each in [0, count) and `work` is one call's.  Nothing is flushed between the calls.
  void ChainRow(const std::string& op, const std::string& shape, const Work& work, int count,
                const std::function<void(int)>& body) const;
  // `prepare` is called before each sample, untimed.
  void PreparedRow(const std::string& op, const std::string& shape, const Work& work,
                   const std::function<void()>& prepare, const std::function<void()>& body) const;

 private:
  void PrintRow(const std::string& op, const std::string& shape, const Work& work,
                const DeviceTiming& timing) const;
  void FlushCache() const;
  DeviceTiming MeasureCopy(std::int64_t bytes) const;
  DeviceTiming MeasureEmpty() const;

  CudaBackend& backend_;
  DeviceBuffer flush_;
  double copy_bytes_per_us_ = 0.0;  // read and written
  double gemm_flops_per_us_ = 0.0;  // block-scaled fp8, 8192 cubed
  double bf16_flops_per_us_ = 0.0;  // 8192 cubed
};

void BenchRowOps(DeviceBench& bench);
void BenchLinearOps(DeviceBench& bench);
void BenchLinearChains(DeviceBench& bench);
void BenchIndexerOps(DeviceBench& bench);
void BenchSelectKeys(DeviceBench& bench);
void BenchAttentionOps(DeviceBench& bench);
void BenchMaskedOps(DeviceBench& bench);
void BenchExpertOps(DeviceBench& bench);
void BenchExpertMlps(DeviceBench& bench);

// A block-scaled product with random operands, ready to be called.
struct ScaledProduct {
  DeviceOperand x, x_scales, weight, weight_scales, y;
  BlockScaledLinearParams params;
};
ScaledProduct MakeScaledProduct(const DeviceBench& bench, std::int64_t tokens, std::int64_t outputs,
                                std::int64_t inputs);

}  // namespace dsa::bench
