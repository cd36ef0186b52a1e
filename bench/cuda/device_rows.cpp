// The ceilings of the card and the rows that are compared with them.
#include "bench/cuda/device_bench.h"
#include "kernels/ops/linear.h"

#include <algorithm>
#include <string>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

void PrintLine(const std::string& op, const std::string& shape, const DeviceTiming& timing) {
  fmt::print("{:<22} {:<26} {:>9.1f} us [{:.1f}, {:.1f}]", op, shape, timing.median, timing.p10,
             timing.p90);
}

}  // namespace

void DeviceBench::MeasureCeilings() {
  fmt::print("{}; median us [p10, p90], L2 flushed before each call\n\n", backend_.Name());
  PrintLine("nothing", "one empty kernel", MeasureEmpty());
  fmt::print("\n");

  constexpr std::int64_t kCopyBytes = std::int64_t{2} << 30;
  const DeviceTiming copy = MeasureCopy(kCopyBytes);
  copy_bytes_per_us_ = 2.0 * static_cast<double>(kCopyBytes) / copy.median;
  PrintLine("copy", "2 GiB", copy);
  fmt::print(" {:.0f} GB/s\n", copy_bytes_per_us_ / 1e3);

  constexpr std::int64_t kSide = 8192;
  const ScaledProduct product = MakeScaledProduct(*this, kSide, kSide, kSide);
  const DeviceTiming gemm = Measure([&] { backend_.BlockScaledLinear(product.params); });
  gemm_flops_per_us_ = 2.0 * kSide * kSide * kSide / gemm.median;
  PrintLine("fp8 product", "8192 x 8192 x 8192", gemm);
  fmt::print(" {:.0f} TFLOP/s\n", gemm_flops_per_us_ / 1e6);

  const DeviceOperand x = Random(DataType::kBf16, kSide, kSide);
  const DeviceOperand weight = Random(DataType::kBf16, kSide, kSide);
  const DeviceOperand y = Random(DataType::kBf16, kSide, kSide);
  const DeviceTiming bf16 =
      Measure([&] { backend_.Linear({.x = x.view, .weight = weight.view, .y = y.view}); });
  bf16_flops_per_us_ = 2.0 * kSide * kSide * kSide / bf16.median;
  PrintLine("bf16 product", "8192 x 8192 x 8192", bf16);
  fmt::print(" {:.0f} TFLOP/s\n", bf16_flops_per_us_ / 1e6);
}

void DeviceBench::Heading(const std::string& text) const {
  fmt::print("\n{}\n", text);
}

void DeviceBench::Row(const std::string& op, const std::string& shape, const Work& work,
                      const std::function<void()>& body) const {
  PrintRow(op, shape, work, Measure(body));
}

void DeviceBench::ChainRow(const std::string& op, const std::string& shape, const Work& work,
                           int count, const std::function<void(int)>& body) const {
  constexpr GraphId kChain{0};
  body(0);  // plans a product, which a recording may not
  backend_.Record(kChain, [&] {
    for (int i = 0; i < count; ++i) {
      body(i);
    }
  });
  const DeviceTiming all = Measure([&] { backend_.Replay(kChain); });
  PrintRow(op, fmt::format("{}, 1 of {}", shape, count), work,
           {.median = all.median / count, .p10 = all.p10 / count, .p90 = all.p90 / count});
}

void DeviceBench::PreparedRow(const std::string& op, const std::string& shape, const Work& work,
                              const std::function<void()>& prepare,
                              const std::function<void()>& body) const {
  PrintRow(op, shape, work, Measure(prepare, body));
}

void DeviceBench::PrintRow(const std::string& op, const std::string& shape, const Work& work,
                           const DeviceTiming& timing) const {
  const double copy_us = work.bytes / copy_bytes_per_us_;
  const double gemm_us = work.flops / gemm_flops_per_us_;
  PrintLine(op, shape, timing);
  fmt::print(" {:>9.3f} MB {:>6.0f} GB/s {:>6.1f} TFLOP/s {:>5.1f} % of {}\n", work.bytes / 1e6,
             work.bytes / timing.median / 1e3, work.flops / timing.median / 1e6,
             100.0 * std::max(copy_us, gemm_us) / timing.median,
             copy_us > gemm_us ? "copy" : "fp8 product");
}

ConstAnyTensor3 HeadWeight(const DeviceOperand& weight, std::int64_t heads, std::int64_t width) {
  return {.data = weight.view.data,
          .type = weight.view.type,
          .rows = heads,
          .heads = width,
          .cols = weight.view.cols,
          .row_stride = width * weight.view.cols,
          .head_stride = weight.view.cols};
}

}  // namespace dsa::bench
