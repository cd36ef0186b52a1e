#include "scheduler/step_cost.h"

#include <algorithm>
#include <cmath>

namespace dsa {
namespace {

// Standard deviations, relative.
constexpr double kNoise = 0.15;         // of a measured step
constexpr double kDriftTogether = 0.1;  // of all coefficients from step to step
constexpr double kDriftApart = 0.01;    // of each coefficient

// What a coefficient may at most and must at least be uncertain by, as a share of the step.
constexpr double kUncertaintyMax = 0.3;
constexpr double kUncertaintyMin = 0.01;

constexpr double kResidualMax = 1.0;  // a step that takes much longer counts as twice the estimate

double Square(double value) {
  return value * value;
}

}  // namespace

void StepWork::Add(AttentionPath path, std::int64_t first_position, std::int64_t tokens,
                   std::int64_t sampled) {
  const auto index = static_cast<std::size_t>(path);
  samples += sampled;
  rows[index] += tokens;
  keys[index] += KeysOf(path, first_position, tokens);
}

void StepWork::Add(const StepWork& other) {
  samples += other.samples;
  prompt_logprobs += other.prompt_logprobs;
  for (std::size_t path = 0; path < kAttentionPaths; ++path) {
    rows[path] += other.rows[path];
    keys[path] += other.keys[path];
  }
}

StepCostModel::Features StepCostModel::FeaturesOf(const StepWork& work) {
  Features features{};
  features[0] = 1;
  features[1] = static_cast<double>(work.samples);
  features[2] = static_cast<double>(work.prompt_logprobs);
  for (std::size_t path = 0; path < kAttentionPaths; ++path) {
    features[kRows + path] = static_cast<double>(work.rows[path]);
    features[kRows + kAttentionPaths + path] = static_cast<double>(work.keys[path]);
  }
  return features;
}

double StepCostModel::EstimateUs(const StepWork& work) const {
  return coefficients_[0] + AddedUs(work);
}

double StepCostModel::AddedUs(const StepWork& work) const {
  double added_us =
      coefficients_[1] * static_cast<double>(work.samples) + PromptLogprobsUs(work.prompt_logprobs);
  for (std::size_t path = 0; path < kAttentionPaths; ++path) {
    added_us +=
        coefficients_[kRows + path] * static_cast<double>(work.rows[path]) +
        coefficients_[kRows + kAttentionPaths + path] * static_cast<double>(work.keys[path]);
  }
  return added_us;
}

StepCostModel::Rates StepCostModel::RatesOf(AttentionPath path) const {
  const auto index = static_cast<std::size_t>(path);
  return {.sample_us = coefficients_[1],
          .prompt_logprob_us = coefficients_[2],
          .row_us = coefficients_[kRows + index],
          .key_us = coefficients_[kRows + kAttentionPaths + index]};
}

// What was never measured may explain the whole step.  Whether there is any.
bool StepCostModel::BeginFeatures(const Features& features, double elapsed_us) {
  bool any = false;
  for (std::size_t i = 0; i < kFeatures; ++i) {
    if (features[i] > 0 && !measured_[i]) {
      measured_[i] = true;
      covariance_[i][i] = Square(elapsed_us / features[i]);
      any = true;
    }
  }
  return any;
}

void StepCostModel::Drift() {
  for (std::size_t i = 0; i < kFeatures; ++i) {
    if (coefficients_[i] == 0) {
      continue;
    }
    for (std::size_t j = 0; j < kFeatures; ++j) {
      covariance_[i][j] += kDriftTogether * kDriftTogether * coefficients_[i] * coefficients_[j];
    }
    covariance_[i][i] += Square(kDriftApart * coefficients_[i]);
  }
}

// A coefficient that no step has shown for long must not become so uncertain that the next one
// makes anything of it; one that was set to zero must be able to leave it.
void StepCostModel::Limit(const Features& features, double step_us) {
  for (std::size_t i = 0; i < kFeatures; ++i) {
    if (features[i] == 0) {
      continue;
    }
    const double share = step_us / features[i];
    const double most = Square(std::max(coefficients_[i], kUncertaintyMax * share));
    if (covariance_[i][i] > most) {
      const double scale = std::sqrt(most / covariance_[i][i]);
      for (std::size_t j = 0; j < kFeatures; ++j) {
        covariance_[i][j] *= scale;
        covariance_[j][i] *= scale;
      }
    }
    covariance_[i][i] = std::max(covariance_[i][i], Square(kUncertaintyMin * share));
  }
}

void StepCostModel::Correct(const Features& features, double residual_us, double step_us) {
  Features spread{};  // covariance . features
  double variance = Square(kNoise * step_us);
  for (std::size_t j = 0; j < kFeatures; ++j) {
    if (features[j] == 0) {
      continue;
    }
    for (std::size_t i = 0; i < kFeatures; ++i) {
      spread[i] += covariance_[j][i] * features[j];  // symmetric
    }
  }
  for (std::size_t i = 0; i < kFeatures; ++i) {
    variance += spread[i] * features[i];
  }
  const double gain = 1 / variance;
  for (std::size_t i = 0; i < kFeatures; ++i) {
    if (spread[i] == 0) {
      continue;  // never measured
    }
    coefficients_[i] = std::max(0.0, coefficients_[i] + spread[i] * gain * residual_us);
    for (std::size_t j = 0; j < kFeatures; ++j) {
      covariance_[i][j] -= spread[i] * spread[j] * gain;
    }
  }
}

void StepCostModel::Measure(const StepWork& work, std::int64_t elapsed_us) {
  const Features features = FeaturesOf(work);
  const double taken_us = std::max(1.0, static_cast<double>(elapsed_us));
  const double estimate_us = EstimateUs(work);
  if (BeginFeatures(features, taken_us)) {
    Correct(features, taken_us - estimate_us, taken_us);
  } else {
    Drift();
    Limit(features, estimate_us);
    Correct(features, std::min(taken_us - estimate_us, kResidualMax * estimate_us), estimate_us);
  }
  for (std::size_t path = 0; path < kAttentionPaths; ++path) {
    rows_max_[path] = std::max(rows_max_[path], 2 * work.rows[path]);
  }
  prompt_logprobs_max_ = std::max(prompt_logprobs_max_, 2 * work.prompt_logprobs);
}

}  // namespace dsa
