#include "server/engine/billing.h"

#include "common/check.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

namespace dsa {

// Of the first `tokens` of a row, and so many that are sampled.
double Billing::WeightOf(const StepPlan::Row& row, std::int64_t tokens,
                         std::int64_t samples) const {
  if (costs_ == nullptr) {
    return static_cast<double>(tokens);
  }
  const std::int64_t logprobs = std::min<std::int64_t>(tokens, row.prompt_logprobs);
  return costs_->AddedUs(row.path, row.first_position, tokens, samples) +
         costs_->PromptLogprobsUs(logprobs);
}

void Billing::BeginStep(const StepWork& work, std::int64_t padding_rows, AttentionPath padding_path,
                        std::int64_t elapsed_us, const StepCostModel& costs) {
  const std::int64_t tokens = std::accumulate(work.rows.begin(), work.rows.end(), std::int64_t{0});
  DSA_CHECK(tokens > 0, "Billing: a step of {} us without rows", elapsed_us);
  // Each sees one key and is sampled; a step that is padded has rows of one path alone.
  StepWork padding{.samples = padding_rows};
  const auto path = static_cast<std::size_t>(padding_path);
  padding.rows[path] = padding_rows;
  padding.keys[path] = padding_rows;
  const auto elapsed = static_cast<double>(std::max<std::int64_t>(0, elapsed_us));
  double padding_weight = costs.AddedUs(padding);
  double weight = costs.AddedUs(work) + padding_weight;
  costs_ = &costs;
  if (weight <= 0) {
    costs_ = nullptr;
    padding_weight = static_cast<double>(padding_rows);
    weight = static_cast<double>(tokens + padding_rows);
  }
  us_per_weight_ = elapsed / weight;
  total_.busy_us += elapsed;
  total_.padding_us += us_per_weight_ * padding_weight;
}

void Billing::Charge(const StepPlan::Row& row, const Sequence* sequence, RequestCost* cost) {
  const double row_us = us_per_weight_ * WeightOf(row, row.tokens, row.samples);
  if (sequence == nullptr) {
    total_.dropped_us += row_us;
    return;
  }
  if (cost == nullptr) {
    total_.own_us += row_us;
    return;
  }
  // The row's first tokens may be computed again, its last ones for the first time.
  const std::int64_t again =
      std::clamp<std::int64_t>(sequence->computed_before() - row.first_position, 0, row.tokens);
  const double again_us = again == 0 ? 0 : us_per_weight_ * WeightOf(row, again, 0);
  total_.recomputed_us += again_us;
  const bool decodes = row.first_position + row.tokens > sequence->prompt_tokens();
  (decodes ? cost->decode_us : cost->prefill_us) += row_us - again_us;
  (decodes ? total_.decode_us : total_.prefill_us) += row_us - again_us;
}

}  // namespace dsa
