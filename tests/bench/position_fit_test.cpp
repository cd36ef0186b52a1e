// Laws of the decomposition: a curve that is made of a fixed cost and slopes gives them back.
#include "server/bench/position_fit.h"

#include "common/prng.h"

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

}  // namespace dsa::bench
