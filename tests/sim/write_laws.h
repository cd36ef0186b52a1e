// Where a step may write (I-2, I-3), checked twice: when it is launched, and when its writes land,
// with cancels, arrivals and draining in between.
#pragma once

#include "cache/block_pool.h"
#include "model/forward_batch.h"
#include "scheduler/scheduler.h"
#include "tests/sim/sim_config.h"

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace dsa::sim {

class WriteLaws final {
 public:
  explicit WriteLaws(const SimConfig& config) : config_(config) {}

  // Before the first step.
  void Observe(const BlockPool& pool, const Scheduler& scheduler);

  // Every slot that the batch writes lies in a block which one running sequence holds alone, which
  // is not published, and which the plan names with its present generation; every block behind a
  // sequence's computed tokens was written under its own salt.  Returns the tokens that the batch
  // computes, by the scheduler's slot; valid until the next call.
  std::span<const std::int64_t> CheckSchedule(const ForwardBatch& batch);

  // Forgets the writes of sequences that ended since CheckSchedule; their blocks must not have been
  // given away.
  void DropEnded();

  // The blocks of the last CheckSchedule still have the generation, and the holder, that they had.
  void CheckLanding() const;

  // The first position that was computed for each request, by request id.
  const std::map<std::int64_t, std::int64_t>& first_computed() const { return first_computed_; }

 private:
  static constexpr std::int64_t kNobody = -1;
  struct Write {
    std::int32_t block;
    std::int64_t generation;
    std::int64_t request;
  };

  std::int64_t GenerationInPlan(std::int32_t block) const;

  const SimConfig& config_;
  const BlockPool* pool_ = nullptr;
  const Scheduler* scheduler_ = nullptr;
  std::vector<std::string> salt_of_block_;  // of whoever wrote it last
  std::vector<const Sequence*> holder_;     // by block, of the step that is scheduled
  std::vector<std::int64_t> granted_;       // by the scheduler's slot
  std::vector<Write> writes_;               // of the step in flight
  std::map<std::int64_t, std::int64_t> first_computed_;
};

}  // namespace dsa::sim
