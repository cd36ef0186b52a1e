// What the engine's time went to, and how much of it each request pays.
//
// A step's time is divided among its rows, those of all data ranks, in proportion to what the cost
// model says that each adds to a step: samples, log-probabilities, rows and visible keys.  So what
// every step takes whatever it computes is divided alike.  Where the model knows nothing yet, each
// token counts the same.
//
// A request pays for every token once, whatever becomes of it.  Nobody pays for tokens that a
// preemption made the engine compute again, for rows of padding, for the server's own requests and
// for what a step computed of a request that ended while it ran.  Engine thread; allocates nothing.
#pragma once

#include "scheduler/sequence.h"
#include "scheduler/step_cost.h"
#include "scheduler/step_plan.h"
#include "server/engine/busy_time.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace dsa {

class Billing final {
 public:
  // A step of so much work and so many rows of padding, which take `padding_path`, took so long.
  // Then comes Charge for each of its rows.
  void BeginStep(const StepWork& work, std::int64_t padding_rows, AttentionPath padding_path,
                 std::int64_t elapsed_us, const StepCostModel& costs);

  // Who pays for a row.
  struct Payer {
    const Sequence* sequence;  // as it was before the step; null where it has ended meanwhile
    RequestCost* cost;         // what its requester pays; null where nobody does
  };
  // payer_of(row) -> Payer.
  template <typename PayerOf>
  void Charge(std::span<const StepPlan::Row> rows, const PayerOf& payer_of) {
    BusyTime total = total_;  // apart, since each sum would wait for its last in memory
    for (const StepPlan::Row& row : rows) {
      Charge(row, payer_of(row), total);
    }
    total_ = total;
  }

  const BusyTime& total() const { return total_; }

 private:
  // Of the first `tokens` of a row, and so many that are sampled.
  double TimeOf(const StepPlan::Row& row, std::int64_t tokens, std::int64_t samples) const {
    const StepCostModel::Rates& rates = rates_[static_cast<std::size_t>(row.path)];
    const std::int64_t logprobs = std::min<std::int64_t>(tokens, row.prompt_logprobs);
    const std::int64_t keys = StepWork::KeysOf(row.path, row.first_position, tokens);
    return rates.sample_us * static_cast<double>(samples) +
           rates.prompt_logprob_us * static_cast<double>(logprobs) +
           rates.row_us * static_cast<double>(tokens) + rates.key_us * static_cast<double>(keys);
  }
  void Charge(const StepPlan::Row& row, const Payer& payer, BusyTime& total) const;

  BusyTime total_;
  // What each piece of a row takes of the step, by path.
  std::array<StepCostModel::Rates, kAttentionPaths> rates_{};
};

// In a loop over all rows of a step: inline.
inline void Billing::Charge(const StepPlan::Row& row, const Payer& payer, BusyTime& total) const {
  const double row_us = TimeOf(row, row.tokens, row.samples);
  if (payer.sequence == nullptr) {
    total.dropped_us += row_us;
    return;
  }
  if (payer.cost == nullptr) {
    total.own_us += row_us;
    return;
  }
  double paid_us = row_us;
  // The row's first tokens may be computed again, its last ones for the first time.
  const std::int64_t again =
      std::min(payer.sequence->computed_before() - row.first_position, row.tokens);
  if (again > 0) {
    const double again_us = TimeOf(row, again, 0);
    total.recomputed_us += again_us;
    paid_us -= again_us;
  }
  if (row.first_position + row.tokens > payer.sequence->prompt_tokens()) {
    payer.cost->decode_us += paid_us;
    total.decode_us += paid_us;
  } else {
    payer.cost->prefill_us += paid_us;
    total.prefill_us += paid_us;
  }
}

}  // namespace dsa
