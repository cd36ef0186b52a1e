// dsa_cuda_bench: the CUDA backend's ops at DeepSeek-V3.2's sizes against the card's ceilings.
#include "bench/cuda/device_bench.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <utility>

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

namespace {

struct Group {
  std::string_view name;
  void (*run)(DeviceBench& bench);
};
constexpr Group kGroups[] = {
    {"rows", BenchRowOps},        {"projections", BenchLinearOps},  {"chains", BenchLinearChains},
    {"indexer", BenchIndexerOps}, {"attention", BenchAttentionOps}, {"experts", BenchExpertOps},
};

int Main(std::span<char* const> names) {
  const auto is_wanted = [&](const Group& group) {
    return names.empty() || std::find(names.begin(), names.end(), group.name) != names.end();
  };
  for (const std::string_view name : names) {
    if (std::none_of(std::begin(kGroups), std::end(kGroups),
                     [&](const Group& group) { return group.name == name; })) {
      fmt::print(stderr, "dsa_cuda_bench: no group '{}'\n", name);
      return 2;
    }
  }
  auto made = CudaBackend::Make(0);
  if (!made.ok()) {
    fmt::print(stderr, "{}\n", made.error().message);
    return ExitCode(made.error());
  }
  const std::unique_ptr<CudaBackend> backend = std::move(made).value();
  const Status reserved = backend->ReserveScratch({
      .tokens_max = 8192,
      .context_max = 131072,
      .masked_context_max = 8192,
      .hidden = 7168,
      .heads = 128,
      .nope = 128,
      .value = 128,
      .index_heads = 64,
      .index_topk = 2048,
      .experts = 256,
      .experts_per_token = 8,
      .expert_width = 2048,
      .linear_width_max = 24576,
      .logit_rows_max = 256,
      .vocabulary = 129280,
  });
  if (!reserved.ok()) {
    fmt::print(stderr, "{}\n", reserved.error().message);
    return ExitCode(reserved.error());
  }
  DeviceBench bench(*backend);
  bench.MeasureCeilings();
  for (const Group& group : kGroups) {
    if (is_wanted(group)) {
      bench.Heading(std::string(group.name));
      group.run(bench);
    }
  }
  return 0;
}

}  // namespace
}  // namespace dsa::bench

// dsa_cuda_bench [GROUP...]: all of them without one.
int main(int argc, char** argv) {
  return dsa::bench::Main({argv + 1, static_cast<std::size_t>(argc - 1)});
}
