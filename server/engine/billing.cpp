#include "server/engine/billing.h"

#include "common/check.h"

#include <algorithm>
#include <cstddef>
#include <numeric>

namespace dsa {

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
  const bool is_known = weight > 0;
  if (!is_known) {  // tokens count the same
    padding_weight = static_cast<double>(padding_rows);
    weight = static_cast<double>(tokens + padding_rows);
  }
  const double us_per_weight = elapsed / weight;
  for (std::size_t index = 0; index < kAttentionPaths; ++index) {
    const StepCostModel::Rates rates = costs.RatesOf(static_cast<AttentionPath>(index));
    rates_[index] =
        is_known
            ? StepCostModel::Rates{.sample_us = us_per_weight * rates.sample_us,
                                   .prompt_logprob_us = us_per_weight * rates.prompt_logprob_us,
                                   .row_us = us_per_weight * rates.row_us,
                                   .key_us = us_per_weight * rates.key_us}
            : StepCostModel::Rates{
                  .sample_us = 0, .prompt_logprob_us = 0, .row_us = us_per_weight, .key_us = 0};
  }
  total_.busy_us += elapsed;
  total_.padding_us += us_per_weight * padding_weight;
}

}  // namespace dsa
