// Laws of the decomposition: a curve that is made of a fixed cost and slopes gives them back.
#include "server/bench/position_fit.h"

#include "common/prng.h"
#include "server/bench/position_bench.h"

#include <algorithm>
#include <cmath>

#include <catch2/catch.hpp>

namespace dsa::bench {
namespace {

const std::vector<double> kPositions = {0,    512,   1024,  2048,  4096,
                                        8192, 16384, 32768, 65536, 131072};

// The paper's decode curve: 100 us, 44.3 us per 1K up to 2105, 1.48 us after; `noise` of each
// point's cost.
std::vector<CostPoint> PaperLike(double noise, std::uint64_t seed) {
  std::vector<CostPoint> points;
  for (const double position : kPositions) {
    const double cost = 100 + 44.3 * std::min(position, 2105.0) / 1024 +
                        1.48 * std::max(position - 2105.0, 0.0) / 1024;
    const double draw = 2.0 * CounterUniform(seed, points.size()) - 1.0;
    points.push_back({.position = position,
                      .cost_us = cost * (1 + noise * draw),
                      .error_us = cost * std::max(noise, 0.001)});
  }
  return points;
}

}  // namespace

TEST_CASE("a knee is found with the slopes on both sides", "[bench][fit]") {
  const auto fit = FitKnee(PaperLike(0, 1));
  REQUIRE(fit);
  CHECK(fit->fixed_us.value == Approx(100).epsilon(0.005));
  CHECK(fit->slope_us_per_k.value == Approx(44.3).epsilon(0.01));
  CHECK(fit->slope_after_us_per_k->value == Approx(1.48).epsilon(0.01));
  CHECK(fit->knee->value == Approx(2105).epsilon(0.01));
  CHECK(fit->residual < 0.002);
  CHECK(fit->At(131072) ==
        Approx(100 + 44.3 * 2105 / 1024 + 1.48 * (131072 - 2105) / 1024).epsilon(0.005));
}

TEST_CASE("errors of a noisy fit cover the truth and grow with the noise", "[bench][fit]") {
  int covered = 0;
  double small_error = 0;
  double large_error = 0;
  constexpr int kTries = 40;
  for (int seed = 0; seed < kTries; ++seed) {
    const auto fit = FitKnee(PaperLike(0.02, static_cast<std::uint64_t>(seed)));
    REQUIRE(fit);
    const Estimate& slope = *fit->slope_after_us_per_k;
    covered += std::abs(slope.value - 1.48) < 2 * slope.error ? 1 : 0;
    small_error += slope.error;
    large_error +=
        FitKnee(PaperLike(0.06, static_cast<std::uint64_t>(seed)))->slope_after_us_per_k->error;
    CHECK(fit->knee->value == Approx(2105).epsilon(0.15));
  }
  CHECK(covered >= kTries * 7 / 10);
  CHECK(large_error / small_error == Approx(3).epsilon(0.25));
}

TEST_CASE("a line is a line, and too few points are no fit", "[bench][fit]") {
  std::vector<CostPoint> points;
  for (const double position : kPositions) {
    points.push_back({.position = position, .cost_us = 70 + 29.3 * position / 1024, .error_us = 1});
  }
  const auto fit = FitLine(points);
  REQUIRE(fit);
  CHECK(fit->fixed_us.value == Approx(70));
  CHECK(fit->slope_us_per_k.value == Approx(29.3));
  CHECK_FALSE(fit->knee);
  CHECK(fit->At(2048) == Approx(128.6));
  points.resize(4);
  CHECK_FALSE(FitKnee(points));
  points.resize(2);
  CHECK_FALSE(FitLine(points));
}

TEST_CASE("the crossing is where the other curve becomes dearer and stays so", "[bench][fit]") {
  const auto curve = [](const std::vector<double>& costs) {
    std::vector<CostPoint> points;
    for (std::size_t i = 0; i < costs.size(); ++i) {
      points.push_back(
          {.position = 100.0 * static_cast<double>(i), .cost_us = costs[i], .error_us = 1});
    }
    return points;
  };
  const auto flat = curve({10, 10, 10, 10});
  CHECK(*Crossing(flat, curve({6, 8, 14, 20})) == Approx(100 + 100.0 / 3));
  CHECK(*Crossing(flat, curve({12, 8, 14, 20})) == Approx(100 + 100.0 / 3));
  CHECK(*Crossing(flat, curve({11, 12, 13, 14})) == 0);
  CHECK_FALSE(Crossing(flat, curve({6, 8, 9, 10})));
}

TEST_CASE("each operator is scaled by its own layers, and the rest by all", "[bench][fit]") {
  PositionResult result{.config = {},
                        .whole = {},
                        .model_name = "m",
                        .device_name = "d",
                        .kv_format = KvFormat::kFp8,
                        .rows = {},
                        .fits = {},
                        .computed_to_copied = {},
                        .skipped = {}};
  result.config.layers = 3;
  result.config.dense_layers = 1;
  result.whole.layers = 13;
  result.whole.dense_layers = 3;
  PointOperators operators{.step_us = 110, .to_plain = 1.1, .times_us = {}};
  const auto time_us = [](PointOperators& of, Operator name) -> double& {
    return of.times_us[static_cast<std::size_t>(name)];
  };
  time_us(operators, Operator::kHead) = 7;
  time_us(operators, Operator::kGatedMlp) = 11;
  time_us(operators, Operator::kExpertMlp) = 13;
  time_us(operators, Operator::kAttend) = 17;
  result.rows.push_back({.decode = true,
                         .attention = Attention::kSparse,
                         .position = 64,
                         .start = 60,
                         .end = 68,
                         .batch = 2,
                         .chunk = 2,
                         .steps = 8,
                         .step_us = 60,  // 12 of it no operator's
                         .step_us_p10 = 30,
                         .step_us_p90 = 120,
                         .error_us = 6,
                         .operators = operators});
  PositionResult scaled = ScaledToWhole(result);
  CHECK(scaled.is_scaled);
  CHECK(scaled.config.layers == 13);
  REQUIRE(scaled.rows.size() == 1);
  PositionRow& row = scaled.rows[0];
  const double expected = 7 + 11 * 3.0 + 13 * 10.0 / 2 + (17 + 12) * 13.0 / 3;
  CHECK(row.step_us == Approx(expected));
  CHECK(row.step_us_p10 == Approx(expected / 2));
  CHECK(row.step_us_p90 == Approx(expected * 2));
  CHECK(row.error_us == Approx(expected / 10));
  REQUIRE(row.operators);
  CHECK(row.operators->step_us == Approx(110 * expected / 60));
  CHECK(time_us(*row.operators, Operator::kHead) == 7);
  CHECK(time_us(*row.operators, Operator::kGatedMlp) == Approx(33));
  CHECK(time_us(*row.operators, Operator::kExpertMlp) == Approx(65));
  CHECK(time_us(*row.operators, Operator::kAttend) == Approx(17 * 13.0 / 3));
  CHECK(row.steps == 8);
}

}  // namespace dsa::bench
