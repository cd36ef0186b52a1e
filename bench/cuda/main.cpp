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

struct Group {
  std::string_view name;
  void (*run)(DeviceBench& bench);
};
constexpr Group kGroups[] = {
    {"rows", BenchRowOps},
    {"projections", BenchLinearOps},
    {"chains", BenchLinearChains},
    {"indexer", BenchIndexerOps},
    {"select_keys", BenchSelectKeys},
    {"attention", BenchAttentionOps},
    {"masked", BenchMaskedOps},
    {"experts", BenchExpertOps},
    {"expert_mlp", BenchExpertMlps},
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
