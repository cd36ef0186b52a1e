// Runs steps on the ranks of a model together: a ModelExecutor and a thread for each, which all run
// the same steps on what their rank holds and meet in the collectives.  What the first rank returns
// is the result.
//
//   engine thread   Launch ──────────────────────────────► Collect
//                     │ the batch                             ▲ every rank is done
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

  // Rank i of config.place.layout is ranks[i].  `group`, `model` and what `ranks` refers to outlive
  // the executor; from here on only the ranks' threads use the backends.  FAILED_PRECONDITION
  // naming the rank where a device has not the memory.
  static Result<std::unique_ptr<RankGroup>> Create(ThreadGroup& group, std::span<const Rank> ranks,
                                                   const ModelConfig& model,
                                                   const ModelExecutorConfig& config);
  ~RankGroup() override;  // joins the threads; not after a failure

  void Launch(const ForwardBatch& batch) override;
  const StepResult& Collect() override;
  bool RunsAhead() const override { return runs_ahead_; }

  // The ranks that others wait for, or that have not finished the step at hand.  Any thread.
  std::vector<int> Late() const;

 private:
  RankGroup(ThreadGroup& group, std::size_t ranks, bool runs_ahead)
      : group_(group), runs_ahead_(runs_ahead), progress_(ranks) {}

  struct Progress {
    bool made = false;       // its executor, or not: then `status` says why
    Status status;           // of that
    std::int64_t steps = 0;  // finished
  };

  // On the thread of the rank.
  void RunRank(std::size_t rank, const Rank& of_rank, const ModelConfig& model,
               const ModelExecutorConfig& config);
  void RunSteps(std::size_t rank, ModelExecutor& executor);
  // Never returns: the engine's thread ends the process.
  void Fail(std::size_t rank, std::string_view reason);
  Status WaitUntilMade();

  ThreadGroup& group_;
  const bool runs_ahead_;
  std::vector<std::thread> threads_;  // constant after Create

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::vector<Progress> progress_;
  const ForwardBatch* batch_ = nullptr;  // of the step at hand
  std::int64_t steps_ = 0;               // launched
  bool stopping_ = false;

  const StepResult* result_ = nullptr;  // of the first rank, written before its step is finished
};

}  // namespace dsa
