// What the engine reports of prompts: their log-probabilities, and the end of requests that want
// nothing else.
#include "server/engine/engine_core.h"

#include <cstddef>
#include <cstdint>

namespace dsa {

// Of the entries behind the sampled ones.
void EngineCore::KeepPromptLogprobs(DataRank& rank, const StepResult& result) {
  auto entry = static_cast<std::int64_t>(rank.plan->sample_rows.size());
  for (const StepPlan::Row& row : rank.plan->rows) {
    const bool live =
        row.prompt_logprobs > 0 && rank.scheduler.Find(row.sequence, row.slot) != nullptr;
    for (std::int32_t i = 0; live && i < row.prompt_logprobs; ++i) {
      GeneratedToken& token = rank.live[row.slot]->prompt[row.first_position + i];
      token.logprob = result.logprobs[entry + i];
      for (std::size_t k = 0; k < token.top_logprobs.size(); ++k) {
        const std::int64_t likely = (entry + i) * kTopLogprobsMax + static_cast<std::int64_t>(k);
        if (result.top_ids[likely] < 0) {
          token.top_logprobs.resize(k);  // the vocabulary has no more
          break;
        }
        token.top_logprobs[k] = {.id = TokenId{result.top_ids[likely]},
                                 .logprob = result.top_logprobs[likely]};
      }
    }
    entry += row.prompt_logprobs;
  }
}

// Requests that want no tokens end when their prompt is computed.
void EngineCore::EndPrompts(DataRank& rank, MonotonicUs now_us) {
  if (rank.plan->sample_rows.size() == rank.plan->rows.size()) {
    return;
  }
  for (const StepPlan::Row& row : rank.plan->rows) {
    if (row.samples > 0) {
      continue;  // nothing more is read of these
    }
    const Sequence* const sequence = rank.scheduler.Find(row.sequence, row.slot);
    if (sequence != nullptr && sequence->only_prompt() && sequence->behind() == 0) {
      LiveRequest& live = *rank.live[row.slot];
      live.first_token_us = now_us;  // when it would have come
      live.last_token_us = now_us;
      End(rank, row.slot, {.reason = FinishReason::kLength});
    }
  }
}

}  // namespace dsa
