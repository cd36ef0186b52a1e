// Runs steps on the ranks of a model together: a ModelExecutor and a thread for each, which run
// their part of the same steps and meet in the collectives.  The tensor ranks of a data rank have
// the same batch, and what the first of them returns is its result.
//
//   engine thread   Launch ──────────────────────────────► Collect      of every data rank
//                     │ its batch                             ▲ its ranks are done
//   thread of a rank  └► upload, layers, collectives, download ┘
//
// A rank that fails ends the group: the others are released from where they wait for it, and the
// process ends on the engine's thread as with a device that failed (kernels/device_failure.h),
// before any result of the step is read.  One that says nothing is the watchdog's affair.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "kernels/comm/thread_group.h"
#include "model/model_config.h"
#include "model/weights.h"
#include "server/engine/executor.h"
#include "server/engine/model_executor.h"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace dsa {

class RankGroup final : public StepExecutor {
 public:
  // What a rank runs on; its backend is in the group of all of them, under the rank's number.
  struct Rank {
    Backend& backend;
    const ModelWeights& weights;
  };

  // What a rank may take for its buffers.
  static constexpr std::chrono::seconds kStartLimit{300};

  // Rank i of config.place.layout is ranks[i].  `group`, of which each data rank is a part, `model`
  // and what `ranks` refers to outlive the executor; from here on only the ranks' threads use the
  // backends.  FAILED_PRECONDITION naming the rank where a device has not the memory.  Ends the
  // process, naming them, where ranks are not there within the limit.
  static Result<std::unique_ptr<RankGroup>> Create(ThreadGroup& group, std::span<const Rank> ranks,
                                                   const ModelConfig& model,
                                                   const ModelExecutorConfig& config,
                                                   std::chrono::milliseconds limit = kStartLimit);
  ~RankGroup() override;  // joins the threads; not after a failure

  // Of the first data rank.
  void Launch(const ForwardBatch& batch) override { LaunchOn(0, batch); }
  const StepResult& Collect() override { return CollectFrom(0); }
  bool RunsAhead() const override { return runs_ahead_; }
  StepExecutor& OfDataRank(std::int64_t rank) override;

  // The ranks that others wait for, or that have not finished the step at hand.  Any thread.
  std::vector<int> Late() const;

 private:
  RankGroup(ThreadGroup& group, const RankLayout& layout, bool runs_ahead);

  // The ranks that have one batch.
  class DataRankExecutor final : public StepExecutor {
   public:
    DataRankExecutor(RankGroup& group, std::size_t rank) : group_(group), rank_(rank) {}
    void Launch(const ForwardBatch& batch) override { group_.LaunchOn(rank_, batch); }
    const StepResult& Collect() override { return group_.CollectFrom(rank_); }
    bool RunsAhead() const override { return group_.runs_ahead_; }
    std::int64_t OwnUs() const override { return group_.OwnUsOf(rank_); }

   private:
    RankGroup& group_;
    const std::size_t rank_;
  };
  // What they are at.
  struct DataRankStep {
    const ForwardBatch* batch = nullptr;
    std::int64_t launched = 0;
    const StepResult* result = nullptr;  // written before its step is finished
  };

  struct Progress {
    bool made = false;               // its executor, or not: then `status` says why
    Status status;                   // of that
    std::int64_t queued = 0;         // steps whose work its backend has
    std::int64_t steps = 0;          // finished
    std::chrono::nanoseconds own{};  // of the last of them, without waiting for other data ranks
  };

  // On the thread of the rank.
  void RunRank(std::size_t rank, const Rank& of_rank, const ModelConfig& model,
               const ModelExecutorConfig& config);
  void RunSteps(std::size_t rank, ModelExecutor& executor);
  // Never returns: the engine's thread ends the process.
  void Fail(std::size_t rank, std::string_view reason);
  Status WaitUntilMade(std::chrono::milliseconds limit);
  void LaunchOn(std::size_t data_rank, const ForwardBatch& batch);
  const StepResult& CollectFrom(std::size_t data_rank);
  std::int64_t OwnUsOf(std::size_t data_rank) const;
  std::size_t DataRankOf(std::size_t rank) const { return rank / tensor_ranks_; }

  ThreadGroup& group_;
  const bool runs_ahead_;
  const std::size_t tensor_ranks_;
  // Constant after Create.
  std::vector<std::unique_ptr<DataRankExecutor>> data_ranks_;
  std::vector<std::thread> threads_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::vector<Progress> progress_;   // by rank
  std::vector<DataRankStep> steps_;  // by data rank
  bool stopping_ = false;
};

}  // namespace dsa
