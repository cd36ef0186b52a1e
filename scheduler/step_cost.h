// How long a step takes, estimated from what it computes and measured as the server runs.
//
//   estimate = coefficients . (1, samples, log-probabilities of prompts, rows of each attention
//   path,
//                              keys of each path)
//
// A Kalman filter over the coefficients: all may drift together, as they do when the machine gets
// slower, and each a little by itself.  Residuals are relative to the estimate, so that no constant
// depends on the machine; the first step of a kind gives the scale.  Pure: the coefficients follow
// from the measured steps alone, to the last bit.  Allocates nothing.  One thread at a time.
#pragma once

#include "common/attention_path.h"

#include <array>
#include <cstddef>
#include <cstdint>

namespace dsa {

// What a step computes, as far as its time depends on it.
struct StepWork {
  // A masked path expands the keys of a chunk, which costs as much as so many rows that see them
  // (SchedulerConfig::masked_rows_min).
  static constexpr std::int64_t kRowsPerExpandedKey = 171;

  std::int64_t samples = 0;
  // Rows of prompts whose logits are computed.  Many together: each takes less than a sampled row.
  std::int64_t prompt_logprobs = 0;
  std::array<std::int64_t, kAttentionPaths> rows{};  // by AttentionPath
  // Keys that the rows see, summed over rows; on masked paths with those that are expanded.
  std::array<std::int64_t, kAttentionPaths> keys{};

  // What `tokens` rows of one sequence from this position on count as keys.
  static std::int64_t KeysOf(AttentionPath path, std::int64_t first_position, std::int64_t tokens) {
    const std::int64_t seen = tokens * first_position + tokens * (tokens + 1) / 2;
    return seen + (IsMasked(path) ? kRowsPerExpandedKey * (first_position + tokens) : 0);
  }
  // These rows, on one path.
  void Add(AttentionPath path, std::int64_t first_position, std::int64_t tokens,
           std::int64_t sampled);
  void Add(const StepWork& other);

  friend bool operator==(const StepWork&, const StepWork&) = default;
};

class StepCostModel final {
 public:
  // Rows of a kind of which none was measured: few enough for any machine, enough to learn from.
  static constexpr std::int64_t kUnmeasuredRows = 16;

  // Microseconds, > 0 once a step was measured; work of a kind that was never measured counts 0.
  double EstimateUs(const StepWork& work) const;
  // What the work adds to a step: without what every step takes.
  double AddedUs(const StepWork& work) const;
  // What each piece of a row on the path adds; AddedUs is their sum.
  struct Rates {
    double sample_us;
    double prompt_logprob_us;
    double row_us;
    double key_us;
  };
  Rates RatesOf(AttentionPath path) const;
  double PromptLogprobsUs(std::int64_t rows) const {
    return coefficients_[2] * static_cast<double>(rows);
  }

  // Rows of a path that the estimate may be trusted for: twice as many as a measured step had.
  std::int64_t RowsMax(AttentionPath path) const {
    return rows_max_[static_cast<std::size_t>(path)];
  }
  std::int64_t PromptLogprobsMax() const { return prompt_logprobs_max_; }

  // A step of `work`, which is not empty, has taken `elapsed_us`.
  void Measure(const StepWork& work, std::int64_t elapsed_us);

 private:
  static constexpr std::size_t kRows = 3;  // the first of the paths'
  static constexpr std::size_t kFeatures = kRows + std::size_t{2} * kAttentionPaths;
  using Features = std::array<double, kFeatures>;

  static Features FeaturesOf(const StepWork& work);
  bool BeginFeatures(const Features& features, double elapsed_us);
  void Drift();
  void Limit(const Features& features, double step_us);
  void Correct(const Features& features, double residual_us, double step_us);

  Features coefficients_{};  // microseconds, >= 0
  // Of the coefficients; symmetric.
  std::array<Features, kFeatures> covariance_{};
  std::array<bool, kFeatures> measured_{};
  std::array<std::int64_t, kAttentionPaths> rows_max_ = [] {
    std::array<std::int64_t, kAttentionPaths> rows{};
    rows.fill(kUnmeasuredRows);
    return rows;
  }();
  std::int64_t prompt_logprobs_max_ = kUnmeasuredRows;
};

}  // namespace dsa
