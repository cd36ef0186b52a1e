// Gate and RoutedExperts at the small model's sizes, and a whole decode step's projections.
#include "bench/kernels/kernel_bench.h"
#include "common/view.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/routed_experts.h"

#include <algorithm>
#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kHidden = 384;
constexpr std::int64_t kWidth = 256;
constexpr std::int64_t kExperts = 16;
constexpr std::int64_t kPerToken = 4;
constexpr std::int64_t kLayers = 5;

struct Stack {
  DeviceMatrix values;
  DeviceBuffer scales;
  StackedWeight view;
};

Stack RandomStack(Backend& backend, std::int64_t rows, std::int64_t cols) {
  const std::int64_t scales = kExperts * Fp8Blocks(rows) * Fp8Blocks(cols);
  Stack stack{.values = RandomMatrix(backend, DataType::kFp8E4m3, kExperts * rows, cols),
              .scales = RandomScales(backend, scales, ScaleFormat::kPowerOfTwo),
              .view = {}};
  stack.view = {.data = stack.values.buffer.data(),
                .type = DataType::kFp8E4m3,
                .scales = stack.scales.As<const float>(),
                .experts = kExperts,
                .rows = rows,
                .cols = cols};
  return stack;
}

// One feed-forward layer: gate, then experts.
class ExpertLayer final {
 public:
  ExpertLayer(Backend& backend, std::int64_t tokens)
      : backend_(backend),
        tokens_(tokens),
        x_(RandomMatrix(backend, DataType::kBf16, tokens, kHidden)),
        y_(RandomMatrix(backend, DataType::kBf16, tokens, kHidden)),
        router_(RandomMatrix(backend, DataType::kBf16, kExperts, kHidden)),
        bias_(RandomScales(backend, kExperts, ScaleFormat::kPlain)),
        gate_(RandomStack(backend, kWidth, kHidden)),
        up_(RandomStack(backend, kWidth, kHidden)),
        down_(RandomStack(backend, kHidden, kWidth)),
        experts_(RandomScales(backend, tokens * kPerToken, ScaleFormat::kPlain)),
        weights_(RandomScales(backend, tokens * kPerToken, ScaleFormat::kPlain)) {}

  void RunGate() {
    backend_.Gate({.x = x_.view,
                   .weight = router_.view,
                   .bias = {.data = bias_.As<const float>(), .size = kExperts},
                   .groups = 4,
                   .groups_kept = 2,
                   .normalize = true,
                   .scale = 2.5F,
                   .experts = Table<std::int32_t>(experts_),
                   .weights = Table<float>(weights_)});
  }

  void RunExperts() {
    backend_.RoutedExperts({.x = x_.view,
                            .gate = gate_.view,
                            .up = up_.view,
                            .down = down_.view,
                            .experts = Table<const std::int32_t>(experts_),
                            .weights = Table<const float>(weights_),
                            .shared = y_.view,
                            .scale_format = ScaleFormat::kPowerOfTwo,
                            .y = y_.view});
  }

 private:
  template <typename T>
  Matrix<T> Table(const DeviceBuffer& buffer) const {
    return {.data = buffer.As<T>(), .rows = tokens_, .cols = kPerToken, .row_stride = kPerToken};
  }

  Backend& backend_;
  std::int64_t tokens_;
  DeviceMatrix x_;
  DeviceMatrix y_;
  DeviceMatrix router_;
  DeviceBuffer bias_;
  Stack gate_;
  Stack up_;
  Stack down_;
  DeviceBuffer experts_;
  DeviceBuffer weights_;
};

// An fp8 projection with the quantization of its input.
class Projection final {
 public:
  Projection(Backend& backend, std::int64_t outputs, std::int64_t inputs)
      : backend_(backend),
        inputs_(inputs),
        x_(RandomMatrix(backend, DataType::kBf16, 1, inputs)),
        values_(RandomMatrix(backend, DataType::kFp8E4m3, 1, inputs)),
        scales_(RandomScales(backend, inputs / 128, ScaleFormat::kPowerOfTwo)),
        weight_(RandomMatrix(backend, DataType::kFp8E4m3, outputs, inputs)),
        weight_scales_(RandomScales(backend, Fp8Blocks(outputs) * Fp8Blocks(inputs),
                                    ScaleFormat::kPowerOfTwo)),
        y_(RandomMatrix(backend, DataType::kBf16, 1, outputs)) {}

  void Run() {
    const std::int64_t blocks = inputs_ / 128;
    backend_.QuantizeFp8({.x = x_.view,
                          .values = Row<Fp8E4m3>(values_.buffer, inputs_),
                          .scales = Row<float>(scales_, blocks),
                          .scale_format = ScaleFormat::kPowerOfTwo});
    backend_.BlockScaledLinear({.x = Row<const Fp8E4m3>(values_.buffer, inputs_),
                                .x_scales = Row<const float>(scales_, blocks),
                                .weight = {.data = weight_.buffer.As<const Fp8E4m3>(),
                                           .rows = weight_.view.rows,
                                           .cols = inputs_,
                                           .row_stride = inputs_},
                                .weight_scales = {.data = weight_scales_.As<const float>(),
                                                  .rows = Fp8Blocks(weight_.view.rows),
                                                  .cols = blocks,
                                                  .row_stride = blocks},
                                .y = y_.view});
  }

 private:
  template <typename T>
  static Matrix<T> Row(const DeviceBuffer& buffer, std::int64_t cols) {
    return {.data = buffer.As<T>(), .rows = 1, .cols = cols, .row_stride = cols};
  }

  Backend& backend_;
  std::int64_t inputs_;
  DeviceMatrix x_;
  DeviceMatrix values_;
  DeviceBuffer scales_;
  DeviceMatrix weight_;
  DeviceBuffer weight_scales_;
  DeviceMatrix y_;
};

}  // namespace

void BenchExperts(Backend& backend, const Report& report) {
  report.Heading("experts: D=384 I=256 E=16 K=4, fp8");
  constexpr double kWeights = 3.0 * kWidth * kHidden;
  for (const std::int64_t tokens : {1, 8, 64, 512}) {
    ExpertLayer layer(backend, tokens);
    const auto count = static_cast<double>(tokens);
    const std::string shape = fmt::format("T={}", tokens);
    report.Row(
        "gate", shape, Measure([&] { layer.RunGate(); }),
        {.bytes = 2.0 * kHidden * (count + kExperts), .flops = 2.0 * count * kHidden * kExperts});
    const double used = std::min(count * kPerToken, static_cast<double>(kExperts));
    report.Row("routed_experts", shape, Measure([&] { layer.RunExperts(); }),
               {.bytes = used * kWeights + 6.0 * count * kHidden,
                .flops = 2.0 * count * kPerToken * kWeights});
  }
}

void BenchDecode(Backend& backend, const Report& report) {
  report.Heading("decode: 5 layers of projections and experts, one row");
  std::vector<Projection> projections;
  double weights = 0.0;
  for (const auto& [outputs, inputs] : {std::pair<std::int64_t, std::int64_t>{256, 384},
                                        {1536, 256},
                                        {576, 384},
                                        {512, 256},
                                        {128, 384},
                                        {384, 1024},
                                        {256, 384},
                                        {256, 384},
                                        {384, 256}}) {
    projections.emplace_back(backend, outputs, inputs);
    weights += static_cast<double>(outputs * inputs);
  }
  ExpertLayer layer(backend, 1);
  layer.RunGate();
  weights += 3.0 * kWidth * kHidden * kPerToken;
  weights *= kLayers;
  report.Row("decode_step", "T=1", Measure([&] {
               for (std::int64_t i = 0; i < kLayers; ++i) {
                 for (Projection& projection : projections) {
                   projection.Run();
                 }
                 layer.RunGate();
                 layer.RunExperts();
               }
             }),
             {.bytes = weights, .flops = 2.0 * weights});
}

}  // namespace dsa::bench
