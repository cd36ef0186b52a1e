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

#include <array>
#include <cstdint>

namespace dsa {

class Billing final {
 public:
  // A step of so much work and so many rows of padding, which take `padding_path`, took so long.
  // Then comes Charge for each of its rows.
  void BeginStep(const StepWork& work, std::int64_t padding_rows, AttentionPath padding_path,
                 std::int64_t elapsed_us, const StepCostModel& costs);

  // `sequence`: as it was before the step; null where it has ended meanwhile.  `cost`: what its
  // requester pays; null where nobody does.
  void Charge(const StepPlan::Row& row, const Sequence* sequence, RequestCost* cost);

  const BusyTime& total() const { return total_; }

 private:
  double TimeOf(const StepPlan::Row& row, std::int64_t tokens, std::int64_t samples) const;

  BusyTime total_;
  // What each piece of a row takes of the step, by path.
  std::array<StepCostModel::Rates, kAttentionPaths> rates_{};
};

}  // namespace dsa
