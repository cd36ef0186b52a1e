// What the engine core tells others of its load, and who pays for a step.
#include "server/engine/engine_core.h"

#include <utility>

namespace dsa {

void EngineCore::StoreLoad() {
  for (const auto& rank : ranks_) {
    RankCounters& load = rank->load;
    load.waiting.store(static_cast<std::int64_t>(rank->scheduler.waiting().size()),
                       std::memory_order_relaxed);
    load.running.store(static_cast<std::int64_t>(rank->scheduler.running().size()),
                       std::memory_order_relaxed);
    load.blocks_referenced.store(rank->pool.referenced_blocks(), std::memory_order_relaxed);
    load.blocks_cached.store(rank->pool.cached_blocks(), std::memory_order_relaxed);
  }
}

// Thousands of numbers: where the executor runs ahead, while the next step runs.
void EngineCore::CountExperts() {
  if (!std::exchange(has_uncounted_pairs_, false)) {
    return;
  }
  for (const auto& rank : ranks_) {
    expert_load_.Add(rank->result->expert_pairs);
  }
  if (expert_load_.EndStep()) {
    LookAtExperts();
  }
}

void EngineCore::LookAtExperts() {
  expert_load_.Look();
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    const ExpertLoad::Hits hits = expert_load_.Of(
        config_.expert_shares.empty() ? ExpertShare{.first = 0, .count = config_.experts.experts}
                                      : config_.expert_shares[rank]);
    RankCounters& load = ranks_[rank]->load;
    load.expert_pairs.store(hits.pairs, std::memory_order_relaxed);
    load.expert_pairs_max_over_mean.store(hits.max_over_mean, std::memory_order_relaxed);
  }
}

// Before anything ends, so that the usage of what ends has its share of this step.
void EngineCore::Bill(std::int64_t elapsed_us) {
  StepWork work;
  std::int64_t padding_rows = 0;
  AttentionPath padding_path{};
  for (const auto& rank : ranks_) {
    const std::int64_t padding = rank->batch->shape.tokens - rank->batch->tokens;
    rank->load.rows.fetch_add(rank->batch->tokens, std::memory_order_relaxed);
    rank->load.padding_rows.fetch_add(padding, std::memory_order_relaxed);
    work.Add(rank->plan->work);
    padding_rows += padding;
    padding_path = rank->plan->rows.empty() ? padding_path : rank->plan->rows.front().path;
  }
  billing_.BeginStep(work, padding_rows, padding_path, elapsed_us, costs_);
  for (const auto& rank : ranks_) {
    billing_.Charge(rank->plan->rows, [&](const StepPlan::Row& row) {
      const Sequence* const sequence = rank->scheduler.Find(row.sequence, row.slot);
      LiveRequest* const live = sequence == nullptr ? nullptr : rank->live[row.slot].get();
      return Billing::Payer{.sequence = sequence,
                            .cost = live != nullptr && live->billed ? &live->cost : nullptr};
    });
  }
  load_.busy.Store(billing_.total());
}

}  // namespace dsa
