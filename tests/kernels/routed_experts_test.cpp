// RoutedExperts against a double-precision restatement with its rounding points.
#include "kernels/ops/routed_experts.h"

#include "tests/kernels/reference.h"
#include "tests/kernels/test_backend.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace dsa::routed_experts_test {
namespace {

struct Case {
  std::int64_t tokens;
  std::int64_t hidden;
  std::int64_t width;
  std::int64_t experts;
  std::int64_t per_token;
  DataType type;
  DataType weight_type;
  bool with_shared;
  std::int64_t first_expert = 0;
};

// One projection of all experts.
struct Stack {
  std::vector<float> values;  // [E, N, K]
  std::vector<float> scales;  // [E, ceil(N / 128), ceil(K / 128)], empty but for fp8
  std::vector<testing::DoubleMatrix> true_values;
};

struct Inputs {
  std::vector<float> x;
  Stack gate;
  Stack up;
  Stack down;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<float> shared;
};

Stack RandomStack(const Case& c, std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  Stack stack;
  for (std::int64_t e = 0; e < c.experts; ++e) {
    const auto own_seed = seed + static_cast<std::uint32_t>(e);
    if (c.weight_type == DataType::kFp8E4m3) {
      auto weight = testing::RandomFp8Weight(rows, cols, ScaleFormat::kPlain, own_seed);
      for (double& scale : weight.scales.values) {
        scale = static_cast<float>(scale * (1.0 + 0.2 * static_cast<double>(e)) * 3.0);
      }
      const auto values = testing::ToFloats(weight.values);
      const auto scales = testing::ToFloats(weight.scales);
      stack.values.insert(stack.values.end(), values.begin(), values.end());
      stack.scales.insert(stack.scales.end(), scales.begin(), scales.end());
      stack.true_values.push_back(testing::Dequantized(weight, 128));
    } else {
      const float deviation = 2.0F / std::sqrt(static_cast<float>(cols));
      const auto values =
          testing::RoundedTo(c.weight_type, testing::RandomFloat(rows * cols, deviation, own_seed));
      stack.values.insert(stack.values.end(), values.begin(), values.end());
      stack.true_values.push_back(testing::ToDouble(rows, cols, values));
    }
  }
  return stack;
}

Inputs RandomInputs(const Case& c) {
  Inputs inputs{
      .x = testing::RoundedTo(c.type, testing::RandomFloat(c.tokens * c.hidden, 1.0F, 1)),
      .gate = RandomStack(c, c.width, c.hidden, 100),
      .up = RandomStack(c, c.width, c.hidden, 200),
      .down = RandomStack(c, c.hidden, c.width, 300),
      .experts = {},
      .weights = testing::RandomFloat(c.tokens * c.per_token, 1.0F, 4),
      .shared = testing::RoundedTo(c.type, testing::RandomFloat(c.tokens * c.hidden, 1.0F, 5)),
  };
  std::mt19937 engine(6);
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    const std::int64_t first = static_cast<std::int64_t>(engine() % 1000);
    for (std::int64_t k = 0; k < c.per_token; ++k) {  // all different, in no sorted order
      inputs.experts.push_back(
          static_cast<std::int32_t>((first + k * (c.experts - 1)) % c.experts));
    }
  }
  return inputs;
}

struct DeviceStack {
  testing::DeviceTensor values;
  std::optional<testing::DeviceArray<float>> scales;
  StackedWeight view;
};

DeviceStack Upload(Backend& backend, const Case& c, const Stack& stack, std::int64_t rows,
                   std::int64_t cols) {
  DeviceStack device{
      .values = testing::DeviceTensor(backend, c.weight_type,
                                      testing::Dense(c.experts * rows, cols), stack.values),
      .scales = {},
      .view = {}};
  if (!stack.scales.empty()) {
    device.scales.emplace(backend, stack.scales);
  }
  device.view = {.data = device.values.View().data,
                 .type = c.weight_type,
                 .scales = device.scales ? device.scales->data() : nullptr,
                 .experts = c.experts,
                 .rows = rows,
                 .cols = cols};
  return device;
}

enum class Aliasing { kOwn, kShared };

testing::DeviceTensor Run(Backend& backend, const Case& c, const Inputs& inputs,
                          Aliasing aliasing) {
  const testing::TensorShape shape{.rows = c.tokens, .cols = c.hidden, .row_stride = c.hidden + 8};
  const testing::DeviceTensor x(backend, c.type, shape, inputs.x);
  testing::DeviceTensor shared(backend, c.type, shape, inputs.shared);
  auto own = testing::DeviceTensor::Poisoned(backend, c.type, shape);
  const DeviceStack gate = Upload(backend, c, inputs.gate, c.width, c.hidden);
  const DeviceStack up = Upload(backend, c, inputs.up, c.width, c.hidden);
  const DeviceStack down = Upload(backend, c, inputs.down, c.hidden, c.width);
  const testing::DeviceArray<std::int32_t> experts(backend, inputs.experts);
  const testing::DeviceArray<float> weights(backend, inputs.weights);
  testing::DeviceTensor& y = aliasing == Aliasing::kOwn ? own : shared;
  backend.RoutedExperts({.x = x.View(),
                         .gate = gate.view,
                         .up = up.view,
                         .down = down.view,
                         .first_expert = c.first_expert,
                         .experts = experts.AsConstMatrix(c.tokens, c.per_token),
                         .weights = weights.AsConstMatrix(c.tokens, c.per_token),
                         .shared = c.with_shared ? ConstAnyMatrix(shared.View()) : ConstAnyMatrix{},
                         .scale_format = ScaleFormat::kPowerOfTwo,
                         .y = y.View()});
  backend.Synchronize();
  return std::move(y);
}

testing::DoubleMatrix MaybeQuantized(const Case& c, const testing::DoubleMatrix& x) {
  return c.weight_type == DataType::kFp8E4m3
             ? testing::Dequantized(testing::Quantized(x, ScaleFormat::kPowerOfTwo), 1)
             : x;
}

// The output of one expert for one row.
testing::DoubleMatrix ExpertOutput(const Case& c, const Inputs& inputs,
                                   const testing::DoubleMatrix& row, std::int32_t expert) {
  const auto quantized = MaybeQuantized(c, row);
  auto gate = testing::Rounded(
      c.type,
      testing::Product(quantized, inputs.gate.true_values[static_cast<std::size_t>(expert)]));
  const auto up = testing::Rounded(
      c.type, testing::Product(quantized, inputs.up.true_values[static_cast<std::size_t>(expert)]));
  for (std::int64_t i = 0; i < c.width; ++i) {
    gate.At(0, i) = gate.At(0, i) / (1.0 + std::exp(-gate.At(0, i))) * up.At(0, i);
  }
  const auto inner = MaybeQuantized(c, testing::Rounded(c.type, gate));
  return testing::Rounded(
      c.type, testing::Product(inner, inputs.down.true_values[static_cast<std::size_t>(expert)]));
}

std::vector<double> Expected(const Case& c, const Inputs& inputs) {
  std::vector<double> expected;
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    const testing::DoubleMatrix row{
        .rows = 1,
        .cols = c.hidden,
        .values = {inputs.x.begin() + t * c.hidden, inputs.x.begin() + (t + 1) * c.hidden}};
    std::vector<double> sum(static_cast<std::size_t>(c.hidden), 0.0);
    for (std::int64_t k = 0; k < c.per_token; ++k) {
      const auto pair = static_cast<std::size_t>(t * c.per_token + k);
      const auto output = ExpertOutput(c, inputs, row, inputs.experts[pair]);
      for (std::int64_t d = 0; d < c.hidden; ++d) {
        sum[d] += inputs.weights[pair] * output.At(0, d);
      }
    }
    for (std::int64_t d = 0; c.with_shared && d < c.hidden; ++d) {
      sum[d] += inputs.shared[t * c.hidden + d];
    }
    expected.insert(expected.end(), sum.begin(), sum.end());
  }
  return expected;
}

}  // namespace

TEST_CASE("RoutedExperts matches its equation", "[kernels][routed_experts]") {
  const auto sizes = GENERATE(values<Case>({
      {0, 64, 32, 4, 2, DataType::kF32, DataType::kF32, true},
      {1, 384, 256, 16, 4, DataType::kF32, DataType::kF32, true},
      {60, 64, 192, 4, 3, DataType::kF32, DataType::kF32, false},
      {3, 136, 130, 6, 1, DataType::kF32, DataType::kF32, true},
      {1, 1536, 512, 3, 2, DataType::kF32, DataType::kF32, true},
  }));
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const bool quantized = GENERATE(false, true);
  Case c = sizes;
  c.type = type;
  c.weight_type = quantized ? DataType::kFp8E4m3 : type;
  const auto aliasing =
      c.with_shared ? GENERATE(Aliasing::kOwn, Aliasing::kShared) : Aliasing::kOwn;
  CAPTURE(c.tokens, c.hidden, c.width, testing::Name(c.type), testing::Name(c.weight_type),
          static_cast<int>(aliasing));
  const Inputs inputs = RandomInputs(c);

  const auto y = Run(testing::TestBackend(), c, inputs, aliasing).Download();

  const auto expected = Expected(c, inputs);
  // Where an intermediate value lies at a border of bf16 or fp8, one rounding may go the other way.
  const double bound = c.type == DataType::kBf16 ? testing::Tolerance(c.type) + 5e-4
                       : quantized               ? 5e-4
                                                 : 1e-6;
  CHECK(testing::RelativeError(y, expected) < bound);
  if (c.type == DataType::kBf16 && c.tokens > 0) {
    const std::vector<float> rounded(expected.begin(), expected.end());
    // Fp8 tensor cores move one rounding in thirty of each product; expert_batches_test.cpp holds
    // the op to those of the same products.
    const double share =
        quantized ? std::min(0.95, testing::Fp8ProductShareEqual(c.type) - 0.04) : 0.95;
    CHECK(testing::ShareEqual(y, testing::RoundedTo(c.type, rounded)) > share);
  }
}

// As on ranks that hold some of the experts each.
TEST_CASE("parts of the experts add up to all", "[kernels][routed_experts]") {
  const auto weight_type = GENERATE(DataType::kF32, DataType::kFp8E4m3);
  const Case whole{.tokens = 17,
                   .hidden = 64,
                   .width = 32,
                   .experts = 5,
                   .per_token = 3,
                   .type = DataType::kF32,
                   .weight_type = weight_type,
                   .with_shared = false};
  const Inputs inputs = RandomInputs(whole);
  const auto expected = Run(testing::TestBackend(), whole, inputs, Aliasing::kOwn).Download();
  std::vector<float> sum(expected.size(), 0.0F);
  for (const auto& [first, count] : {std::pair{0, 2}, std::pair{2, 1}, std::pair{3, 2}}) {
    Case part = whole;
    part.first_expert = first;
    part.experts = count;
    Inputs own = inputs;
    for (Stack* stack : {&own.gate, &own.up, &own.down}) {
      const auto slice = [&, first = first, count = count](std::vector<float>& values) {
        const auto each = static_cast<std::ptrdiff_t>(values.size()) / whole.experts;
        values = {values.begin() + first * each, values.begin() + (first + count) * each};
      };
      slice(stack->values);
      slice(stack->scales);
    }
    const auto y = Run(testing::TestBackend(), part, own, Aliasing::kOwn).Download();
    for (std::int64_t t = 0; t < whole.tokens; ++t) {
      const auto ids = inputs.experts.begin() + t * whole.per_token;
      const bool has_none = std::none_of(ids, ids + whole.per_token, [&](std::int32_t id) {
        return id >= part.first_expert && id < part.first_expert + part.experts;
      });
      CHECK((y[t * whole.hidden] == 0.0F) == has_none);
    }
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] += y[i];
    }
  }
  CHECK(testing::RelativeError(sum, std::vector<double>(expected.begin(), expected.end())) < 1e-6);
}

TEST_CASE("A token's experts do not depend on batch or threads", "[kernels][routed_experts]") {
  const auto weight_type = GENERATE(DataType::kBf16, DataType::kFp8E4m3);
  const Case c{.tokens = 130,
               .hidden = 136,
               .width = 130,
               .experts = 5,
               .per_token = 3,
               .type = DataType::kBf16,
               .weight_type = weight_type,
               .with_shared = true};
  const Inputs inputs = RandomInputs(c);
  const auto bits = Run(testing::TestBackend(), c, inputs, Aliasing::kOwn).DownloadBits();
  for (Backend* variant : testing::BackendVariants()) {
    CHECK(Run(*variant, c, inputs, Aliasing::kOwn).DownloadBits() == bits);
  }
  Case alone = c;
  alone.tokens = 1;
  const auto row_bytes = static_cast<std::int64_t>(bits.size()) / c.tokens;
  for (const std::int64_t t : {0, 1, 63, 129}) {
    Inputs one = inputs;
    one.x.assign(inputs.x.begin() + t * c.hidden, inputs.x.begin() + (t + 1) * c.hidden);
    one.shared.assign(inputs.shared.begin() + t * c.hidden,
                      inputs.shared.begin() + (t + 1) * c.hidden);
    one.experts.assign(inputs.experts.begin() + t * c.per_token,
                       inputs.experts.begin() + (t + 1) * c.per_token);
    one.weights.assign(inputs.weights.begin() + t * c.per_token,
                       inputs.weights.begin() + (t + 1) * c.per_token);
    CHECK(Run(testing::TestBackend(), alone, one, Aliasing::kOwn).DownloadBits() ==
          std::vector<std::uint8_t>(bits.begin() + t * row_bytes,
                                    bits.begin() + (t + 1) * row_bytes));
  }
}

TEST_CASE("NaN stays with its token", "[kernels][routed_experts]") {
  const auto weight_type = GENERATE(DataType::kF32, DataType::kFp8E4m3);
  const Case c{.tokens = 4,
               .hidden = 64,
               .width = 32,
               .experts = 4,
               .per_token = 2,
               .type = DataType::kF32,
               .weight_type = weight_type,
               .with_shared = true};
  Inputs inputs = RandomInputs(c);
  inputs.x[2 * 64 + 5] = NAN;
  const auto y = Run(testing::TestBackend(), c, inputs, Aliasing::kOwn).Download();
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    CHECK(std::isnan(y[t * 64]) == (t == 2));
  }
}

}  // namespace dsa::routed_experts_test
