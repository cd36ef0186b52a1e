#include "server/engine/rank_group.h"

#include "common/check.h"
#include "kernels/device_failure.h"

#include <algorithm>
#include <exception>
#include <utility>

#include <fmt/core.h>
#include <unistd.h>

namespace dsa {

Result<std::unique_ptr<RankGroup>> RankGroup::Create(ThreadGroup& group,
                                                     std::span<const Rank> ranks,
                                                     const ModelConfig& model,
                                                     const ModelExecutorConfig& config) {
  DSA_CHECK(static_cast<std::int64_t>(ranks.size()) == config.place.layout.ranks &&
                group.ranks() == config.place.layout.ranks,
            "RankGroup: {} ranks of {}, a group of {}", ranks.size(), config.place.layout.ranks,
            group.ranks());
  auto executor = std::unique_ptr<RankGroup>(new RankGroup(group, ranks.size(), config.runs_ahead));
  RankGroup& made = *executor;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    ModelExecutorConfig of_rank = config;
    of_rank.place.rank = static_cast<std::int64_t>(rank);
    made.threads_.emplace_back([&made, rank, parts = ranks[rank], &model, of_rank] {
      made.RunRank(rank, parts, model, of_rank);
    });
  }
  DSA_RETURN_IF_ERROR(made.WaitUntilMade());
  return executor;
}

RankGroup::~RankGroup() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

Status RankGroup::WaitUntilMade() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] {
    return !group_.failure().empty() || std::all_of(progress_.begin(), progress_.end(),
                                                    [](const Progress& rank) { return rank.made; });
  });
  if (const std::string failure = group_.failure(); !failure.empty()) {
    DeviceFailed(failure);
  }
  for (std::size_t rank = 0; rank < progress_.size(); ++rank) {
    if (!progress_[rank].status.ok()) {
      const Error& error = progress_[rank].status.error();
      return Error{error.code, fmt::format("rank {}: {}", rank, error.message)};
    }
  }
  return {};
}

void RankGroup::RunRank(std::size_t rank, const Rank& of_rank, const ModelConfig& model,
                        const ModelExecutorConfig& config) {
  SetThreadFailureHandler([this, rank](std::string_view reason) { Fail(rank, reason); });
  of_rank.backend.BindThread();
  auto executor =
      ModelExecutor::Create(of_rank.backend, {.config = model, .weights = of_rank.weights}, config);
  {
    const std::lock_guard lock(mutex_);
    progress_[rank].made = true;
    progress_[rank].status = executor.ok() ? Status() : Status(executor.error());
  }
  changed_.notify_all();
  if (executor.ok()) {
    try {
      RunSteps(rank, *executor.value());
    } catch (const std::exception& failure) {
      Fail(rank, failure.what());
    }
  }
  SetThreadFailureHandler({});
}

void RankGroup::RunSteps(std::size_t rank, ModelExecutor& executor) {
  while (true) {
    const ForwardBatch* batch = nullptr;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || steps_ > progress_[rank].steps; });
      if (stopping_) {
        return;
      }
      batch = batch_;
    }
    executor.Launch(*batch);
    const StepResult& result = executor.Collect();
    {
      const std::lock_guard lock(mutex_);
      if (rank == 0) {
        result_ = &result;
      }
      ++progress_[rank].steps;
    }
    changed_.notify_all();
  }
}

void RankGroup::Fail(std::size_t rank, std::string_view reason) {
  group_.Fail(fmt::format("rank {}: {}", rank, reason));
  { const std::lock_guard lock(mutex_); }  // not between Collect's look and its wait
  changed_.notify_all();
  while (true) {
    pause();
  }
}

void RankGroup::Launch(const ForwardBatch& batch) {
  {
    const std::lock_guard lock(mutex_);
    batch_ = &batch;
    ++steps_;
  }
  changed_.notify_all();
}

const StepResult& RankGroup::Collect() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] {
      return !group_.failure().empty() ||
             std::all_of(progress_.begin(), progress_.end(),
                         [this](const Progress& rank) { return rank.steps == steps_; });
    });
  }
  // Also where all have finished: what a failed group computes is nothing to be read.
  if (const std::string failure = group_.failure(); !failure.empty()) {
    DeviceFailed(failure);
  }
  return *result_;
}

std::vector<int> RankGroup::Late() const {
  std::vector<int> late = group_.Absent();
  const std::lock_guard lock(mutex_);
  for (std::size_t rank = 0; late.empty() && rank < progress_.size(); ++rank) {
    if (progress_[rank].steps < steps_) {
      late.push_back(static_cast<int>(rank));
    }
  }
  return late;
}

}  // namespace dsa
