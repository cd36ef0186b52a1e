// The decomposition of a cost curve: a fixed cost and slopes per 1K of context, straight lines with
// at most one knee, by weighted least squares.  Pure.
#pragma once

#include <optional>
#include <vector>

namespace dsa::bench {

struct CostPoint {
  double position;  // tokens of context
  double cost_us;   // of a token
  double error_us;  // of cost_us, one standard deviation; > 0
};

struct Estimate {
  double value = 0;
  double error = 0;  // one standard deviation, from the points' scatter about the fit
};

struct CostFit {
  Estimate fixed_us;             // at position 0
  Estimate slope_us_per_k;       // per 1024 positions, before the knee where there is one
  std::optional<Estimate> knee;  // position
  std::optional<Estimate> slope_after_us_per_k;
  double residual = 0;  // root of the mean squared relative deviation

  double At(double position) const;
};

// Needs three points, else nullopt.
std::optional<CostFit> FitLine(const std::vector<CostPoint>& points);
// Needs five points, else nullopt.  The knee lies between the second and the second-last point.
std::optional<CostFit> FitKnee(const std::vector<CostPoint>& points);

// Where `other` becomes dearer than `curve` and stays so, by straight lines between the points,
// which are at the same positions; nullopt where it does not.
std::optional<double> Crossing(const std::vector<CostPoint>& curve,
                               const std::vector<CostPoint>& other);

}  // namespace dsa::bench
