// SelectTopK over contexts up to 128K, with scores as they come: many distinct, many exact zeros,
// all equal.
#include "bench/kernels/paged_batch.h"
#include "kernels/ops/select_top_k.h"

#include <algorithm>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

enum class Scores : std::uint8_t { kDistinct, kHalfZero, kEqual };

const char* Name(Scores scores) {
  switch (scores) {
    case Scores::kDistinct: return "distinct";
    case Scores::kHalfZero: return "half zero";
    case Scores::kEqual: return "equal";
  }
  return "?";
}

void BenchCase(Backend& backend, const Report& report, std::int64_t context, Scores kind) {
  constexpr std::int64_t kSelected = 2048;
  std::vector<float> scores = RandomValues(context, 7);
  for (float& score : scores) {
    score = kind == Scores::kDistinct ? score
            : kind == Scores::kEqual  ? 1.0F
                                      : std::max(score, 0.0F);
  }
  const auto last = static_cast<std::int32_t>(context - 1);
  const DeviceBuffer device = Upload(backend, scores.data(), scores.size() * sizeof(float));
  const DeviceBuffer position = Upload(backend, &last, sizeof(last));
  const std::int64_t blocks = (context + 63) / 64;
  const std::vector<std::int32_t> zeros(static_cast<std::size_t>(std::max(kSelected, blocks)), 0);
  const DeviceBuffer sequence = Upload(backend, zeros.data(), sizeof(std::int32_t));
  const DeviceBuffer table =
      Upload(backend, zeros.data(), static_cast<std::size_t>(blocks) * sizeof(std::int32_t));
  const DeviceBuffer selected = Upload(backend, zeros.data(), zeros.size() * sizeof(std::int32_t));
  const DeviceBuffer count = Upload(backend, zeros.data(), sizeof(std::int32_t));
  const DeviceBuffer fault = Upload(backend, zeros.data(), sizeof(std::int32_t));
  const Timing timing = Measure([&] {
    backend.SelectTopK(
        {.scores =
             {.data = device.As<const float>(), .rows = 1, .cols = context, .row_stride = context},
         .rows = {.positions = {.data = position.As<const std::int32_t>(), .size = 1},
                  .sequences = {.data = sequence.As<const std::int32_t>(), .size = 1},
                  .block_tables = {.data = table.As<const std::int32_t>(),
                                   .rows = 1,
                                   .cols = blocks,
                                   .row_stride = blocks}},
         .k = kSelected,
         .slots = {.data = selected.As<std::int32_t>(),
                   .rows = 1,
                   .cols = kSelected,
                   .row_stride = kSelected},
         .mask = {},
         .positions = {},
         .counts = {.data = count.As<std::int32_t>(), .size = 1},
         .faults = {.data = fault.As<std::int32_t>(), .size = 1}});
  });
  report.Row("select_top_k", fmt::format("T=1 K={} context={} {}", kSelected, context, Name(kind)),
             timing, {.bytes = static_cast<double>(context * 4 + kSelected * 4), .flops = 0.0});
}

}  // namespace

void BenchTopK(Backend& backend, const Report& report) {
  report.Heading("top-k");
  for (const std::int64_t context : {4096, 131072}) {
    for (const Scores kind : {Scores::kDistinct, Scores::kHalfZero, Scores::kEqual}) {
      BenchCase(backend, report, context, kind);
    }
  }
}

}  // namespace dsa::bench
