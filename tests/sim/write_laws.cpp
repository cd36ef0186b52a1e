#include "tests/sim/write_laws.h"

#include <algorithm>

#include <fmt/format.h>

namespace dsa::sim {

void WriteLaws::Observe(const BlockPool& pool, const Scheduler& scheduler) {
  pool_ = &pool;
  scheduler_ = &scheduler;
  salt_of_block_.assign(pool.blocks(), "");
}

std::int64_t WriteLaws::GenerationInPlan(std::int32_t block) const {
  const StepPlan* plan = scheduler_->in_flight();
  SIM_CHECK(plan != nullptr, "a step runs that is not planned");
  const auto write = std::find_if(
      plan->writes.begin(), plan->writes.end(),
      [block](const StepPlan::Write& planned) { return Value(planned.block) == block; });
  SIM_CHECK(write != plan->writes.end(),
            fmt::format("block {} is written, which is not in the plan", block));
  return write->generation;
}

std::span<const std::int64_t> WriteLaws::CheckSchedule(const ForwardBatch& batch) {
  holder_.assign(pool_->blocks(), nullptr);
  granted_.assign(scheduler_->slots(), 0);
  writes_.clear();
  for (const Sequence* sequence : scheduler_->running()) {
    const std::string& salt = sequence->request().cache_salt;
    const auto blocks = sequence->blocks().ids();
    const std::int64_t used =
        (sequence->computed() + config_.tokens_per_block - 1) / config_.tokens_per_block;
    for (std::int64_t i = 0; i < sequence->blocks().blocks(); ++i) {
      holder_[blocks[i]] = sequence;
      SIM_CHECK(i >= used || salt_of_block_[blocks[i]] == salt,
                fmt::format("block {} of another salt is shared", blocks[i]));
    }
    first_computed_.emplace(Value(sequence->request().id), sequence->computed());
  }
  for (const std::int64_t slot : batch.slots.first(batch.tokens)) {
    const auto block = static_cast<std::int32_t>(slot / config_.tokens_per_block);
    const BlockId id{block};
    SIM_CHECK(pool_->references(id) == 1 && !pool_->is_cached(id),
              fmt::format("block {} is shared and written", block));
    const Sequence* holder = holder_[block];
    SIM_CHECK(holder != nullptr, "a block that nobody runs with is written");
    salt_of_block_[block] = holder->request().cache_salt;
    ++granted_[holder->slot()];
    if (writes_.empty() || writes_.back().block != block) {
      SIM_CHECK(GenerationInPlan(block) == pool_->generation(id),
                fmt::format("block {} changed hands since the step was planned", block));
      writes_.push_back({.block = block,
                         .generation = pool_->generation(id),
                         .request = Value(holder->request().id)});
    }
  }
  return granted_;
}

void WriteLaws::DropEnded() {
  std::vector<bool> runs(pool_->blocks(), false);
  for (const Sequence* sequence : scheduler_->running()) {
    for (const std::int32_t block : sequence->blocks().ids()) {
      runs[block] = true;
    }
  }
  std::erase_if(writes_, [&](const Write& write) {
    const bool gone = !runs[write.block];
    SIM_CHECK(
        !gone || pool_->generation(BlockId{write.block}) == write.generation,
        fmt::format("block {} of a sequence that ended in flight was given away", write.block));
    return gone;
  });
}

void WriteLaws::CheckLanding() const {
  std::vector<std::int64_t> holder(pool_->blocks(), kNobody);
  for (const Sequence* sequence : scheduler_->running()) {
    for (const std::int32_t block : sequence->blocks().ids()) {
      holder[block] = Value(sequence->request().id);
    }
  }
  for (const Write& write : writes_) {
    SIM_CHECK(pool_->generation(BlockId{write.block}) == write.generation,
              fmt::format("a late write lands in block {}, which was given away", write.block));
    SIM_CHECK(holder[write.block] == write.request,
              fmt::format("a write of request {} lands in block {}, which it lost", write.request,
                          write.block));
  }
}

}  // namespace dsa::sim
