#include "server/bench/position_fit.h"

#include "server/bench/units.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace dsa::bench {
namespace {

constexpr int kKneeCandidates = 400;
constexpr std::size_t kTermsMax = 3;

using Row = std::array<double, kTermsMax>;

struct Solution {
  Row values{};
  Row errors{};
  double chi_squared = 0;
  bool solved = false;
};

// Gauss-Jordan with pivoting: the inverse of the leading terms x terms part, or false.
bool Invert(std::array<Row, kTermsMax> matrix, std::size_t terms,
            std::array<Row, kTermsMax>& inverse) {
  inverse = {};
  for (std::size_t i = 0; i < terms; ++i) {
    inverse[i][i] = 1;
  }
  for (std::size_t column = 0; column < terms; ++column) {
    std::size_t pivot = column;
    for (std::size_t row = column; row < terms; ++row) {
      pivot = std::abs(matrix[row][column]) > std::abs(matrix[pivot][column]) ? row : pivot;
    }
    std::swap(matrix[pivot], matrix[column]);
    std::swap(inverse[pivot], inverse[column]);
    const double divisor = matrix[column][column];
    if (!(std::abs(divisor) > 1e-300)) {
      return false;
    }
    for (std::size_t k = 0; k < terms; ++k) {
      matrix[column][k] /= divisor;
      inverse[column][k] /= divisor;
    }
    for (std::size_t row = 0; row < terms; ++row) {
      const double factor = row == column ? 0 : matrix[row][column];
      for (std::size_t k = 0; k < terms; ++k) {
        matrix[row][k] -= factor * matrix[column][k];
        inverse[row][k] -= factor * inverse[column][k];
      }
    }
  }
  return true;
}

Row TermsAt(double position, double knee) {
  return {1, std::min(position, knee) / kTokensPerK, std::max(position - knee, 0.0) / kTokensPerK};
}

// Weighted least squares of `terms` terms; errors from the scatter about the fit.
Solution Solve(const std::vector<CostPoint>& points, double knee, std::size_t terms,
               std::size_t parameters) {
  std::array<Row, kTermsMax> normal{};
  Row right{};
  for (const CostPoint& point : points) {
    const Row row = TermsAt(point.position, knee);
    const double weight = 1 / (point.error_us * point.error_us);
    for (std::size_t i = 0; i < terms; ++i) {
      right[i] += weight * row[i] * point.cost_us;
      for (std::size_t k = 0; k < terms; ++k) {
        normal[i][k] += weight * row[i] * row[k];
      }
    }
  }
  Solution solution;
  std::array<Row, kTermsMax> inverse{};
  if (!Invert(normal, terms, inverse)) {
    return solution;
  }
  solution.solved = true;
  for (std::size_t i = 0; i < terms; ++i) {
    for (std::size_t k = 0; k < terms; ++k) {
      solution.values[i] += inverse[i][k] * right[k];
    }
  }
  for (const CostPoint& point : points) {
    const Row row = TermsAt(point.position, knee);
    double fitted = 0;
    for (std::size_t i = 0; i < terms; ++i) {
      fitted += solution.values[i] * row[i];
    }
    solution.chi_squared += std::pow((point.cost_us - fitted) / point.error_us, 2);
  }
  const double freedom =
      std::max(1.0, static_cast<double>(points.size()) - static_cast<double>(parameters));
  for (std::size_t i = 0; i < terms; ++i) {
    solution.errors[i] = std::sqrt(std::max(0.0, inverse[i][i]) * solution.chi_squared / freedom);
  }
  return solution;
}

CostFit ToFit(const Solution& solution) {
  CostFit fit;
  fit.fixed_us = {solution.values[0], solution.errors[0]};
  fit.slope_us_per_k = {solution.values[1], solution.errors[1]};
  return fit;
}

double Residual(const std::vector<CostPoint>& points, const CostFit& fit) {
  double squares = 0;
  for (const CostPoint& point : points) {
    squares += std::pow(fit.At(point.position) / point.cost_us - 1, 2);
  }
  return std::sqrt(squares / static_cast<double>(points.size()));
}

}  // namespace

double CostFit::At(double position) const {
  if (!knee) {
    return fixed_us.value + slope_us_per_k.value * position / kTokensPerK;
  }
  const Row row = TermsAt(position, knee->value);
  return fixed_us.value + slope_us_per_k.value * row[1] + slope_after_us_per_k->value * row[2];
}

std::optional<CostFit> FitLine(const std::vector<CostPoint>& points) {
  if (points.size() < 3) {
    return std::nullopt;
  }
  const Solution solution = Solve(points, points.back().position + 1, 2, 2);
  if (!solution.solved) {
    return std::nullopt;
  }
  CostFit fit = ToFit(solution);
  fit.residual = Residual(points, fit);
  return fit;
}

std::optional<CostFit> FitKnee(const std::vector<CostPoint>& points) {
  if (points.size() < 5) {
    return std::nullopt;
  }
  const double low = points[1].position;
  const double high = points[points.size() - 2].position;
  std::vector<std::pair<double, Solution>> tried;
  for (int i = 0; i <= kKneeCandidates; ++i) {
    const double knee = low * std::pow(high / low, static_cast<double>(i) / kKneeCandidates);
    const Solution solution = Solve(points, knee, 3, 4);
    if (solution.solved) {
      tried.emplace_back(knee, solution);
    }
  }
  if (tried.empty()) {
    return std::nullopt;
  }
  const auto best = std::min_element(tried.begin(), tried.end(), [](const auto& a, const auto& b) {
    return a.second.chi_squared < b.second.chi_squared;
  });
  CostFit fit = ToFit(best->second);
  fit.slope_after_us_per_k = Estimate{best->second.values[2], best->second.errors[2]};
  // The knees whose fit is worse by no more than one unit of the scatter.
  const double freedom = std::max(1.0, static_cast<double>(points.size()) - 4);
  const double limit = best->second.chi_squared * (1 + 1 / freedom);
  double first = best->first;
  double last = best->first;
  for (const auto& [knee, solution] : tried) {
    if (solution.chi_squared <= limit) {
      first = std::min(first, knee);
      last = std::max(last, knee);
    }
  }
  fit.knee = Estimate{best->first, (last - first) / 2};
  fit.residual = Residual(points, fit);
  return fit;
}

std::optional<double> Crossing(const std::vector<CostPoint>& curve,
                               const std::vector<CostPoint>& other) {
  std::optional<double> crossing;
  for (std::size_t i = 0; i < std::min(curve.size(), other.size()); ++i) {
    const double gap = other[i].cost_us - curve[i].cost_us;
    if (gap <= 0) {
      crossing.reset();
    } else if (!crossing && i == 0) {
      crossing = curve[i].position;
    } else if (!crossing) {
      const double before = other[i - 1].cost_us - curve[i - 1].cost_us;
      crossing = curve[i - 1].position +
                 (curve[i].position - curve[i - 1].position) * before / (before - gap);
    }
  }
  return crossing;
}

}  // namespace dsa::bench
