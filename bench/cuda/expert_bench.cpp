// Gate, RoutedExperts and SwiGlu of a layer, and Sample, at DeepSeek-V3.2's sizes.  Tokens go to
// their experts as evenly as they can.
#include "bench/cuda/device_bench.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/routed_experts.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/swiglu.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kHidden = 7168;
constexpr std::int64_t kWidth = 2048;
constexpr std::int64_t kPerToken = 8;

void BenchGate(const DeviceBench& bench, std::int64_t tokens) {
  constexpr std::int64_t kExperts = 256;
  const DeviceOperand x = bench.Random(DataType::kBf16, tokens, kHidden);
  const DeviceOperand bias = bench.Random(DataType::kF32, 1, kExperts);
  const DeviceOperand weights = bench.Random(DataType::kF32, tokens, kPerToken);
  const DeviceBuffer experts = bench.Allocate(tokens * kPerToken * 4);
  const auto values = static_cast<double>(kExperts * kHidden);
  constexpr int kLayers = 32;
  const DeviceOperand w = bench.Random(DataType::kBf16, kLayers * kExperts, kHidden);
  const auto run = [&](int layer) {
    AnyMatrix weight = w.view;
    weight.rows = kExperts;
    weight.data = w.buffer.As<std::uint8_t>() + layer * kExperts * kHidden * 2;
    bench.backend().Gate({.x = x.view,
                          .weight = weight,
                          .bias = {.data = bias.buffer.As<const float>(), .size = kExperts},
                          .groups = 8,
                          .groups_kept = 4,
                          .normalize = true,
                          .scale = 2.5F,
                          .experts = {.data = experts.As<std::int32_t>(),
                                      .rows = tokens,
                                      .cols = kPerToken,
                                      .row_stride = kPerToken},
                          .weights = weights.As<float>()});
  };
  const Work work = {.bytes = 2.0 * values + 2.0 * static_cast<double>(tokens * kHidden),
                     .flops = 2.0 * values * static_cast<double>(tokens)};
  const std::string shape = fmt::format("T={} E=256 D=7168", tokens);
  bench.Row("gate", shape, work, [&] { run(0); });
  bench.ChainRow("gate", shape, work, kLayers, run);
}

// The weights of a layer's experts.
struct ExpertWeights {
  DeviceOperand gate, up, down, scales;

  ExpertWeights(const DeviceBench& bench, std::int64_t experts)
      : gate(bench.Random(DataType::kFp8E4m3, experts * kWidth, kHidden)),
        up(bench.Random(DataType::kFp8E4m3, experts * kWidth, kHidden)),
        down(bench.Random(DataType::kFp8E4m3, experts * kHidden, kWidth)),
        scales(bench.RandomScales(experts, kWidth * kHidden / 128 / 128)) {}

  StackedWeight Stack(const DeviceOperand& operand, std::int64_t rows, std::int64_t cols) const {
    return {.data = operand.view.data,
            .type = DataType::kFp8E4m3,
            .scales = scales.buffer.As<const float>(),
            .experts = scales.view.rows,
            .rows = rows,
            .cols = cols};
  }
};

// Tokens with their experts; ids [T, K], negative: on another rank.
struct RoutedTokens {
  DeviceOperand x, y, weights;
  DeviceBuffer ids;
  std::int64_t tokens;

  RoutedTokens(const DeviceBench& bench, const std::vector<std::int32_t>& chosen)
      : x(bench.Random(DataType::kBf16, static_cast<std::int64_t>(chosen.size()) / kPerToken,
                       kHidden)),
        y(bench.Random(DataType::kBf16, x.view.rows, kHidden)),
        weights(bench.Random(DataType::kF32, x.view.rows, kPerToken)),
        ids(bench.Upload(chosen.data(), static_cast<std::int64_t>(chosen.size()) * 4)),
        tokens(x.view.rows) {}

  RoutedExpertsParams Params(const ExpertWeights& layer) const {
    return {.x = x.view,
            .gate = layer.Stack(layer.gate, kWidth, kHidden),
            .up = layer.Stack(layer.up, kWidth, kHidden),
            .down = layer.Stack(layer.down, kHidden, kWidth),
            .experts = {.data = ids.As<const std::int32_t>(),
                        .rows = tokens,
                        .cols = kPerToken,
                        .row_stride = kPerToken},
            .weights = weights.As<const float>(),
            .shared = x.view,
            .scale_format = ScaleFormat::kPowerOfTwo,
            .y = y.view};
  }
};

std::vector<std::int32_t> EvenIds(std::int64_t tokens, std::int64_t experts) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < tokens * kPerToken; ++i) {
    ids.push_back(static_cast<std::int32_t>(i * 37 % experts));
  }
  return ids;
}

// Each of `rows` tokens goes to one of the experts here, those with low ids more often.
std::vector<std::int32_t> UnevenIds(std::int64_t rows, std::int64_t experts) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(rows * kPerToken), -1);
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int64_t draw = t * 37 % rows;
    ids[static_cast<std::size_t>(t * kPerToken)] =
        static_cast<std::int32_t>(draw * draw * experts / (rows * rows));
  }
  return ids;
}

Work WorkOf(const std::vector<std::int32_t>& ids) {
  const auto expert_values = static_cast<double>(3 * kWidth * kHidden);
  std::vector<std::int32_t> hit(ids);
  std::sort(hit.begin(), hit.end());
  const auto here = std::lower_bound(hit.begin(), hit.end(), 0);
  const auto pairs = static_cast<double>(hit.end() - here);
  const auto experts = static_cast<double>(std::unique(here, hit.end()) - here);
  return {.bytes = expert_values * experts, .flops = 2.0 * expert_values * pairs};
}

std::string Describe(const std::vector<std::int32_t>& ids, const char* kind) {
  const Work work = WorkOf(ids);
  const auto values = static_cast<double>(3 * kWidth * kHidden);
  const double hit = work.bytes / values;
  const double pairs = work.flops / 2.0 / values;
  return fmt::format("{:.0f} experts x {:.1f} {}", hit, pairs / std::max(hit, 1.0), kind);
}

// By weight bytes.
void BenchExperts(const DeviceBench& bench, std::int64_t experts,
                  const std::vector<std::pair<const char*, std::vector<std::int32_t>>>& batches) {
  constexpr std::int64_t kBytes = std::int64_t{1400} << 20;
  std::vector<ExpertWeights> layers;
  while (layers.size() < 2 ||
         static_cast<std::int64_t>(layers.size()) * experts * 3 * kWidth * kHidden < kBytes) {
    layers.emplace_back(bench, experts);
  }
  for (const auto& [kind, ids] : batches) {
    const RoutedTokens tokens(bench, ids);
    const std::string shape = Describe(ids, kind);
    bench.Row("routed_experts", shape, WorkOf(ids),
              [&] { bench.backend().RoutedExperts(tokens.Params(layers[0])); });
    bench.ChainRow("routed_experts", shape, WorkOf(ids), 16, [&](int i) {
      bench.backend().RoutedExperts(
          tokens.Params(layers[static_cast<std::size_t>(i) % layers.size()]));
    });
  }
}

// A layer's experts with the shared one, behind a gate of `all` experts, of which the first are
// here: by the bytes of those that are hit in the mean.
void BenchExpertMlp(const DeviceBench& bench, std::int64_t experts, std::int64_t all,
                    std::int64_t tokens) {
  constexpr int kLayers = 4;
  std::vector<ExpertWeights> layers;
  std::vector<ExpertWeights> shared;
  for (int i = 0; i < kLayers; ++i) {
    layers.emplace_back(bench, experts);
    shared.emplace_back(bench, 1);
  }
  const RoutedTokens routed(bench, EvenIds(tokens, experts));
  const DeviceOperand router = bench.Random(DataType::kBf16, all, kHidden);
  const DeviceOperand bias = bench.Random(DataType::kF32, 1, all);
  const DeviceOperand codes = bench.Random(DataType::kFp8E4m3, tokens, kHidden);
  const DeviceOperand scales = bench.RandomScales(tokens, Fp8Blocks(kHidden));
  const DeviceOperand inner = bench.Random(DataType::kBf16, tokens, kWidth);
  const DeviceOperand up = bench.Random(DataType::kBf16, tokens, kWidth);
  const DeviceOperand inner_codes = bench.Random(DataType::kFp8E4m3, tokens, kWidth);
  const DeviceOperand inner_scales = bench.RandomScales(tokens, Fp8Blocks(kWidth));
  const auto linear = [](const ExpertWeights& layer, const DeviceOperand& weight) {
    const std::int64_t blocks = Fp8Blocks(weight.view.cols);
    return LinearWeight{.weight = weight.view,
                        .scales = {.data = layer.scales.buffer.As<const float>(),
                                   .rows = Fp8Blocks(weight.view.rows),
                                   .cols = blocks,
                                   .row_stride = blocks}};
  };
  const auto params = [&](int i) {
    const ExpertWeights& own = shared[static_cast<std::size_t>(i % kLayers)];
    ExpertMlpParams mlp{
        .gate = {.x = routed.x.view,
                 .weight = router.view,
                 .bias = {.data = bias.buffer.As<const float>(), .size = all},
                 .groups = all > experts ? 8 : 1,
                 .groups_kept = all > experts ? 4 : 1,
                 .normalize = true,
                 .scale = 2.5F,
                 .experts = {.data = routed.ids.As<std::int32_t>(),
                             .rows = tokens,
                             .cols = kPerToken,
                             .row_stride = kPerToken},
                 .weights = routed.weights.As<float>()},
        .shared = GatedMlpParams{.x = {.x = routed.x.view,
                                       .fp8 = {.values = codes.As<Fp8E4m3>(),
                                               .scales = scales.As<float>(),
                                               .format = ScaleFormat::kPowerOfTwo}},
                                 .gate = linear(own, own.gate),
                                 .up = linear(own, own.up),
                                 .down = linear(own, own.down),
                                 .inner = {.x = inner.view,
                                           .fp8 = {.values = inner_codes.As<Fp8E4m3>(),
                                                   .scales = inner_scales.As<float>(),
                                                   .format = ScaleFormat::kPowerOfTwo}},
                                 .up_output = up.view,
                                 .y = routed.y.view},
        .routed = routed.Params(layers[static_cast<std::size_t>(i % kLayers)])};
    mlp.routed.shared = routed.y.view;
    return mlp;
  };
  const double missed = std::pow(1.0 - static_cast<double>(kPerToken) / static_cast<double>(all),
                                 static_cast<double>(tokens));
  const double values = static_cast<double>(3 * kWidth * kHidden) *
                        (static_cast<double>(experts) * (1.0 - missed) + 1.0);
  const Work work = {.bytes = values, .flops = 0.0};
  const std::string shape = fmt::format("T={} E={} of {}", tokens, experts, all);
  bench.ChainRow("expert_mlp", shape, work, 16,
                 [&](int i) { bench.backend().ExpertMlp(params(i)); });
}

void BenchSwiGlu(const DeviceBench& bench, std::int64_t tokens, std::int64_t width) {
  const DeviceOperand gate = bench.Random(DataType::kBf16, tokens, width);
  const DeviceOperand up = bench.Random(DataType::kBf16, tokens, width);
  bench.Row("swiglu", fmt::format("T={} I={}", tokens, width),
            {.bytes = 6.0 * static_cast<double>(tokens * width), .flops = 0.0},
            [&] { bench.backend().SwiGlu({.gate = gate.view, .up = up.view, .y = gate.view}); });
}

void BenchSample(const DeviceBench& bench, std::int64_t rows, const std::string& name,
                 SamplingRow wanted, std::int64_t adjusted) {
  constexpr std::int64_t kVocabulary = 129280;
  const DeviceOperand logits = bench.Random(DataType::kF32, rows, kVocabulary);
  const DeviceOperand floats = bench.Random(DataType::kF32, rows, 2 * kTopLogprobsMax);
  const DeviceBuffer ints = bench.Allocate(rows * 4 * (3 + kTopLogprobsMax));
  bench.backend().Zero(ints.data(), ints.bytes());
  std::vector<SamplingRow> row_values;
  std::vector<LogitAdjustment> adjustments;
  std::vector<std::int32_t> own;
  for (std::int64_t row = 0; row < rows; ++row) {
    wanted.adjustments_first = static_cast<std::int32_t>(adjustments.size());
    wanted.adjustments_count = static_cast<std::int32_t>(adjusted);
    wanted.position = row;
    for (std::int64_t i = 0; i < adjusted; ++i) {
      adjustments.push_back(
          {.id = static_cast<std::int32_t>(i * 7 % kVocabulary), .add = -0.1F, .repetition = 1.1F});
    }
    row_values.push_back(wanted);
    own.push_back(static_cast<std::int32_t>(row));
  }
  const DeviceBuffer wanted_rows =
      bench.Upload(row_values.data(), rows * static_cast<std::int64_t>(sizeof(SamplingRow)));
  const DeviceBuffer changes = bench.Upload(
      adjustments.data(), static_cast<std::int64_t>(adjustments.size() * sizeof(LogitAdjustment)));
  const DeviceBuffer logit_rows = bench.Upload(own.data(), rows * 4);
  auto* out = ints.As<std::int32_t>();
  bench.Row("sample", fmt::format("R={} V=129280 {}", rows, name),
            {.bytes = 4.0 * static_cast<double>(rows * kVocabulary), .flops = 0.0}, [&] {
              bench.backend().Sample(
                  {.logits = logits.As<const float>(),
                   .logit_rows = {.data = logit_rows.As<const std::int32_t>(), .size = rows},
                   .rows = {.data = wanted_rows.As<const SamplingRow>(), .size = rows},
                   .adjustments = {.data = changes.As<const LogitAdjustment>(),
                                   .size = static_cast<std::int64_t>(adjustments.size())},
                   .masks = {},
                   .vocabulary_limit = kVocabulary,
                   .tokens = {.data = out, .size = rows},
                   .logprobs = {.data = floats.buffer.As<float>(), .size = rows},
                   .top_ids = {.data = out + 2 * rows,
                               .rows = rows,
                               .cols = kTopLogprobsMax,
                               .row_stride = kTopLogprobsMax},
                   .top_logprobs = {.data = floats.buffer.As<float>() + rows,
                                    .rows = rows,
                                    .cols = kTopLogprobsMax,
                                    .row_stride = kTopLogprobsMax},
                   .faults = {.data = out + rows, .size = rows}});
            });
}

}  // namespace

void BenchExpertMlps(DeviceBench& bench) {
  for (const std::int64_t all : {8, 256}) {
    for (const std::int64_t tokens : {1, 8, 16, 17, 32, 64}) {
      BenchExpertMlp(bench, 8, all, tokens);
    }
  }
}

void BenchExpertOps(DeviceBench& bench) {
  bench.Heading("experts, fp8");
  for (const std::int64_t tokens : {1, 64, 2048}) {
    BenchGate(bench, tokens);
    BenchSwiGlu(bench, tokens, 18432);
  }
  BenchExperts(bench, 8,
               {{"even", EvenIds(1, 8)},
                {"even", EvenIds(8, 8)},
                {"even", EvenIds(16, 8)},
                {"even", EvenIds(64, 8)},
                {"uneven", UnevenIds(200, 8)},
                {"even", EvenIds(512, 8)},
                {"even", EvenIds(2048, 8)}});
  BenchExperts(bench, 32,
               {{"even", EvenIds(4, 32)},
                {"even", EvenIds(64, 32)},
                {"even", EvenIds(256, 32)},
                {"uneven", UnevenIds(72, 32)},
                {"uneven", UnevenIds(285, 32)},
                {"even", EvenIds(2048, 32)}});
  bench.Heading("sampling");
  constexpr SamplingRow kGreedy{.temperature = 0.0F,
                                .min_p = 0.0F,
                                .top_p = 1.0F,
                                .top_k = 0,
                                .seed = 1,
                                .position = 0,
                                .adjustments_first = 0,
                                .adjustments_count = 0,
                                .top_logprobs = 0};
  for (const std::int64_t rows : {1, 64}) {
    SamplingRow wanted = kGreedy;
    BenchSample(bench, rows, "greedy", wanted, 0);
    wanted.temperature = 1.0F;
    BenchSample(bench, rows, "temperature", wanted, 0);
    wanted.top_p = 0.95F;
    BenchSample(bench, rows, "top_p", wanted, 0);
    wanted.top_k = 1000;
    wanted.min_p = 0.001F;
    wanted.top_logprobs = 20;
    BenchSample(bench, rows, "all filters", wanted, 0);
    BenchSample(bench, rows, "all, 16K adjusted", wanted, 16384);
  }
}

}  // namespace dsa::bench
