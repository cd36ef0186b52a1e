// Gate: selection by exact rules on prepared scores, and weights against a double reference.
#include "kernels/ops/gate.h"

#include "tests/kernels/reference.h"
#include "tests/kernels/test_backend.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

namespace dsa::gate_test {
namespace {

struct Case {
  std::int64_t tokens;
  std::int64_t hidden;
  std::int64_t experts;
  std::int64_t per_token;
  std::int64_t groups;
  std::int64_t groups_kept;
  bool normalize;
  float scale;
};

struct Routing {
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
};

struct Inputs {
  DataType type;
  std::vector<float> x;       // [T, D]
  std::vector<float> weight;  // [E, D]
  std::vector<float> bias;    // [E]
};

// What is counted beside the routing; by default nothing.
struct Counting {
  Vector<const std::int32_t> live_rows{};
  Vector<std::int32_t> expert_pairs{};
};

Routing Run(Backend& backend, const Case& c, const Inputs& inputs, const Counting& counting = {}) {
  const testing::DeviceTensor x(backend, inputs.type,
                                {.rows = c.tokens, .cols = c.hidden, .row_stride = c.hidden + 8},
                                inputs.x);
  const testing::DeviceTensor weight(backend, inputs.type, testing::Dense(c.experts, c.hidden),
                                     inputs.weight);
  const testing::DeviceArray<float> bias(backend, inputs.bias);
  const auto experts =
      testing::DeviceArray<std::int32_t>::Poisoned(backend, c.tokens * c.per_token);
  const auto weights = testing::DeviceArray<float>::Poisoned(backend, c.tokens * c.per_token);
  backend.Gate({.x = x.View(),
                .weight = weight.View(),
                .bias = bias.AsConstVector(),
                .groups = c.groups,
                .groups_kept = c.groups_kept,
                .normalize = c.normalize,
                .scale = c.scale,
                .experts = experts.AsMatrix(c.tokens, c.per_token),
                .weights = weights.AsMatrix(c.tokens, c.per_token),
                .live_rows = counting.live_rows,
                .expert_pairs = counting.expert_pairs});
  return {.experts = experts.Download(), .weights = weights.Download()};
}

double Sigmoid(double z) {
  return 1.0 / (1.0 + std::exp(-z));
}

// Ids by descending value, the lower first on ties.
std::vector<std::int32_t> Ranked(const std::vector<double>& values) {
  std::vector<std::int32_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](std::int32_t a, std::int32_t b) { return values[a] > values[b]; });
  return ids;
}

// The experts of one row of scores [E].
std::vector<std::int32_t> Chosen(const Case& c, const std::vector<double>& biased) {
  const std::int64_t size = c.experts / c.groups;
  std::vector<double> group_scores;
  for (std::int64_t g = 0; g < c.groups; ++g) {
    std::vector<double> values(biased.begin() + g * size, biased.begin() + (g + 1) * size);
    std::sort(values.rbegin(), values.rend());
    group_scores.push_back(size > 1 ? values[0] + values[1] : values[0]);
  }
  auto groups = Ranked(group_scores);
  groups.resize(static_cast<std::size_t>(c.groups_kept));
  std::vector<std::int32_t> chosen;
  for (const std::int32_t id : Ranked(biased)) {
    const auto group = static_cast<std::int32_t>(id / size);
    if (std::count(groups.begin(), groups.end(), group) > 0 &&
        static_cast<std::int64_t>(chosen.size()) < c.per_token) {
      chosen.push_back(id);
    }
  }
  return chosen;
}

Routing Expected(const Case& c, const Inputs& inputs) {
  const auto logits = testing::Product(testing::ToDouble(c.tokens, c.hidden, inputs.x),
                                       testing::ToDouble(c.experts, c.hidden, inputs.weight));
  Routing routing;
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    std::vector<double> biased;
    for (std::int64_t e = 0; e < c.experts; ++e) {
      biased.push_back(Sigmoid(logits.At(t, e)) + inputs.bias[e]);
    }
    const auto chosen = Chosen(c, biased);
    double sum = 0.0;
    for (const std::int32_t e : chosen) {
      sum += Sigmoid(logits.At(t, e));
    }
    for (const std::int32_t e : chosen) {
      routing.experts.push_back(e);
      routing.weights.push_back(
          static_cast<float>(Sigmoid(logits.At(t, e)) / (c.normalize ? sum : 1.0) * c.scale));
    }
  }
  return routing;
}

// One token whose logits are all 0, so that every score is 1/2 and the bias alone selects.
Routing ByBias(const Case& c, const std::vector<float>& bias) {
  return Run(testing::TestBackend(), c,
             {.type = DataType::kF32,
              .x = std::vector<float>(c.tokens * c.hidden, 0.0F),
              .weight = std::vector<float>(c.experts * c.hidden, 1.0F),
              .bias = bias});
}

constexpr Case kEightInFour{.tokens = 1,
                            .hidden = 8,
                            .experts = 8,
                            .per_token = 2,
                            .groups = 4,
                            .groups_kept = 2,
                            .normalize = true,
                            .scale = 1.0F};

}  // namespace

TEST_CASE("Gate matches its equation", "[kernels][gate]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto c = GENERATE(values<Case>({
      {0, 64, 16, 4, 4, 2, true, 2.5F},
      {1, 7168, 256, 8, 8, 4, true, 2.5F},
      {67, 384, 16, 4, 4, 2, true, 2.5F},
      {33, 130, 24, 3, 3, 1, false, 1.5F},
      {5, 96, 160, 8, 1, 1, true, 1.0F},
      {9, 7168, 256, 8, 8, 4, true, 2.5F},
      {3, 96, 158, 8, 2, 1, true, 1.0F},
      {4, 7168, 32, 6, 4, 3, true, 1.0F},  // one a lane of a warp
      {9, 96, 33, 16, 1, 1, true, 1.0F},   // one more than a warp has lanes
      {5, 96, 6, 4, 6, 5, true, 1.0F},     // groups of one expert
      {5, 96, 6, 6, 1, 1, false, 1.0F},
  }));
  CAPTURE(testing::Name(type), c.tokens, c.hidden, c.experts, c.groups);
  const float deviation = 2.0F / std::sqrt(static_cast<float>(c.hidden));
  Inputs inputs{
      .type = type,
      .x = testing::RoundedTo(type, testing::RandomFloat(c.tokens * c.hidden, 1.0F, 1)),
      .weight = testing::RoundedTo(type, testing::RandomFloat(c.experts * c.hidden, deviation, 2)),
      .bias = testing::RandomFloat(c.experts, 0.3F, 3),
  };
  const Routing routing = Run(testing::TestBackend(), c, inputs);
  const Routing expected = Expected(c, inputs);
  CHECK(routing.experts == expected.experts);
  const std::vector<double> weights(expected.weights.begin(), expected.weights.end());
  CHECK(testing::RelativeError(routing.weights, weights) < 2e-6);
}

TEST_CASE("A gate row's result does not depend on batch or threads", "[kernels][gate]") {
  const Case c{.tokens = 101,
               .hidden = 384,
               .experts = 16,
               .per_token = 4,
               .groups = 4,
               .groups_kept = 2,
               .normalize = true,
               .scale = 2.5F};
  const Inputs inputs{.type = DataType::kBf16,
                      .x = testing::RandomFloat(c.tokens * c.hidden, 1.0F, 1),
                      .weight = testing::RandomFloat(c.experts * c.hidden, 0.1F, 2),
                      .bias = testing::RandomFloat(c.experts, 0.1F, 3)};
  const Routing routing = Run(testing::TestBackend(), c, inputs);
  for (Backend* variant : testing::BackendVariants()) {
    const Routing other = Run(*variant, c, inputs);
    CHECK(other.experts == routing.experts);
    CHECK(other.weights == routing.weights);
  }
  Case alone = c;
  alone.tokens = 1;
  for (const std::int64_t row : {0, 47, 48, 100}) {
    Inputs one = inputs;
    one.x.assign(inputs.x.begin() + row * c.hidden, inputs.x.begin() + (row + 1) * c.hidden);
    const Routing other = Run(testing::TestBackend(), alone, one);
    for (std::int64_t k = 0; k < c.per_token; ++k) {
      CHECK(other.experts[k] == routing.experts[row * c.per_token + k]);
      CHECK(other.weights[k] == routing.weights[row * c.per_token + k]);
    }
  }
}

TEST_CASE("Gate adds the rows that chose an expert, without padding", "[kernels][gate]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto c = GENERATE(values<Case>({
      {1, 7168, 256, 8, 8, 4, true, 2.5F},
      {64, 384, 16, 4, 4, 2, true, 2.5F},
      {67, 384, 16, 4, 4, 2, true, 2.5F},
      {5, 96, 6, 6, 1, 1, false, 1.0F},
  }));
  const std::int64_t live = GENERATE_COPY(as<std::int64_t>(), c.tokens, c.tokens * 2 / 3, 0);
  const bool is_told = live < c.tokens;  // else all rows are
  CAPTURE(testing::Name(type), c.tokens, c.experts, live);
  const Inputs inputs{
      .type = type,
      .x = testing::RoundedTo(type, testing::RandomFloat(c.tokens * c.hidden, 1.0F, 1)),
      .weight = testing::RoundedTo(type, testing::RandomFloat(c.experts * c.hidden, 0.1F, 2)),
      .bias = testing::RandomFloat(c.experts, 0.3F, 3)};
  std::vector<std::int32_t> expected(static_cast<std::size_t>(c.experts));
  std::iota(expected.begin(), expected.end(), 1000);
  const testing::DeviceArray<std::int32_t> pairs(expected);
  const testing::DeviceArray<std::int32_t> live_rows(
      std::vector<std::int32_t>{static_cast<std::int32_t>(live)});
  Counting counting{.expert_pairs = pairs.AsVector()};
  if (is_told) {
    counting.live_rows = live_rows.AsConstVector();
  }
  const Routing routing = Run(testing::TestBackend(), c, inputs, counting);
  const Routing uncounted = Run(testing::TestBackend(), c, inputs);
  CHECK(routing.experts == uncounted.experts);
  CHECK(routing.weights == uncounted.weights);
  for (std::int64_t i = 0; i < live * c.per_token; ++i) {
    ++expected[static_cast<std::size_t>(routing.experts[static_cast<std::size_t>(i)])];
  }
  CHECK(pairs.Download() == expected);
}

TEST_CASE("Equal gate scores go to the lower group and expert", "[kernels][gate]") {
  CHECK(ByBias(kEightInFour, std::vector<float>(8, 0.0F)).experts ==
        std::vector<std::int32_t>{0, 1});
  // Groups 1 and 2 tie for the second place behind group 3.
  CHECK(ByBias(kEightInFour, {0, 0, 0.1F, 0.2F, 0.2F, 0.1F, 0.5F, 0}).experts ==
        std::vector<std::int32_t>{6, 3});
  Case three = kEightInFour;
  three.per_token = 3;
  CHECK(ByBias(three, {0, 0, 0.25F, 0.25F, 0.125F, 0.25F, 0, 0}).experts ==
        std::vector<std::int32_t>{2, 3, 5});
}

TEST_CASE("A group counts by the sum of its two largest", "[kernels][gate]") {
  Case one_group = kEightInFour;
  one_group.groups = 2;
  one_group.groups_kept = 1;
  // The first group has the larger maximum and the larger total, the second the better pair.
  CHECK(ByBias(one_group, {0.5F, 0, 0, 0, 0.4F, 0.4F, -0.4F, -0.4F}).experts ==
        std::vector<std::int32_t>{4, 5});
}

TEST_CASE("An expert of a losing group never wins", "[kernels][gate]") {
  // Every biased score is negative, so that a mask of zero would beat the kept ones.
  CHECK(ByBias(kEightInFour, {-3, -3, -2, -9, -2, -9, -1.5F, -9.5F}).experts ==
        std::vector<std::int32_t>{2, 0});
  CHECK(ByBias(kEightInFour, {-9, -9, -2, -3, -8, -8, -2, -4}).experts ==
        std::vector<std::int32_t>{2, 6});
}

TEST_CASE("The bias selects and does not weigh", "[kernels][gate]") {
  Case c = kEightInFour;
  c.scale = 2.5F;
  const Routing routing = ByBias(c, {0, 5, 0, 0, 0, 0, 0, 9});
  CHECK(routing.experts == std::vector<std::int32_t>{7, 1});
  CHECK(routing.weights == std::vector<float>{1.25F, 1.25F});
  c.normalize = false;
  CHECK(ByBias(c, {0, 5, 0, 0, 0, 0, 0, 9}).weights == std::vector<float>{1.25F, 1.25F});
  c.per_token = 4;  // a sum of 2: the two now differ
  CHECK(ByBias(c, {0, 5, 0, 0, 0, 0, 0, 9}).weights == std::vector<float>(4, 1.25F));
  c.normalize = true;
  CHECK(ByBias(c, {0, 5, 0, 0, 0, 0, 0, 9}).weights == std::vector<float>(4, 0.625F));
}

TEST_CASE("NaN in a gate row leaves valid ids", "[kernels][gate]") {
  Case c = kEightInFour;
  c.tokens = 2;
  std::vector<float> x(16, 0.0F);
  x[3] = NAN;
  const Routing routing = Run(testing::TestBackend(), c,
                              {.type = DataType::kF32,
                               .x = x,
                               .weight = std::vector<float>(64, 1.0F),
                               .bias = std::vector<float>(8, 0.0F)});
  const std::set<std::int32_t> ids(routing.experts.begin(), routing.experts.begin() + 2);
  CHECK(ids.size() == 2);
  CHECK(*ids.begin() >= 0);
  CHECK(*ids.rbegin() < 8);
  CHECK(std::isnan(routing.weights[0]));
  CHECK(routing.weights[2] == 0.5F);  // the other row
}

}  // namespace dsa::gate_test
