#include "server/engine/rank_group.h"

#include "common/check.h"
#include "kernels/device_failure.h"

#include <algorithm>
#include <exception>
#include <utility>

#include <fmt/format.h>
#include <unistd.h>

namespace dsa {

Result<std::unique_ptr<RankGroup>> RankGroup::Create(ThreadGroup& group,
                                                     std::span<const Rank> ranks,
                                                     const ModelConfig& model,
                                                     const ModelExecutorConfig& config,
                                                     std::chrono::milliseconds limit) {
  const RankLayout& layout = config.place.layout;
  DSA_CHECK(static_cast<std::int64_t>(ranks.size()) == layout.all_ranks() &&
                group.ranks() == layout.all_ranks(),
            "RankGroup: {} ranks of {}, a group of {}", ranks.size(), layout.all_ranks(),
            group.ranks());
  auto executor = std::unique_ptr<RankGroup>(new RankGroup(group, layout, config.runs_ahead));
  RankGroup& made = *executor;
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    ModelExecutorConfig of_rank = config;
    of_rank.place.rank = static_cast<std::int64_t>(rank);
    made.threads_.emplace_back([&made, rank, parts = ranks[rank], &model, of_rank] {
      made.RunRank(rank, parts, model, of_rank);
    });
  }
  DSA_RETURN_IF_ERROR(made.WaitUntilMade(limit));
  return executor;
}

RankGroup::RankGroup(ThreadGroup& group, const RankLayout& layout, bool runs_ahead)
    : group_(group),
      runs_ahead_(runs_ahead),
      tensor_ranks_(static_cast<std::size_t>(layout.ranks)),
      progress_(static_cast<std::size_t>(layout.all_ranks())),
      steps_(static_cast<std::size_t>(layout.data_ranks)) {
  for (std::size_t rank = 0; rank < steps_.size(); ++rank) {
    data_ranks_.push_back(std::make_unique<DataRankExecutor>(*this, rank));
  }
}

StepExecutor& RankGroup::OfDataRank(std::int64_t rank) {
  return *data_ranks_.at(static_cast<std::size_t>(rank));
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

Status RankGroup::WaitUntilMade(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  const bool in_time = changed_.wait_for(lock, limit, [this] {
    return !group_.failure().empty() || std::all_of(progress_.begin(), progress_.end(),
                                                    [](const Progress& rank) { return rank.made; });
  });
  if (const std::string failure = group_.failure(); !failure.empty()) {
    DeviceFailed(failure);
  }
  if (!in_time) {  // their threads cannot be joined
    std::vector<std::size_t> missing;
    for (std::size_t rank = 0; rank < progress_.size(); ++rank) {
      if (!progress_[rank].made) {
        missing.push_back(rank);
      }
    }
    constexpr double kMsPerS = 1000;
    DeviceFailed(fmt::format("ranks did not start within {:g} s: {}",
                             static_cast<double>(limit.count()) / kMsPerS,
                             fmt::join(missing, ", ")));
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
      const DataRankStep& step = steps_[DataRankOf(rank)];
      changed_.wait(lock, [&] { return stopping_ || step.launched > progress_[rank].steps; });
      if (stopping_) {
        return;
      }
      batch = step.batch;
    }
    const auto start = std::chrono::steady_clock::now();
    const auto waited = group_.Waited(static_cast<int>(rank));
    executor.Launch(*batch);
    {
      const std::lock_guard lock(mutex_);
      ++progress_[rank].queued;
    }
    const StepResult& result = executor.Collect();
    const auto took = std::chrono::steady_clock::now() - start;
    const auto own = took - (group_.Waited(static_cast<int>(rank)) - waited);
    {
      const std::lock_guard lock(mutex_);
      progress_[rank].own = own;
      if (rank % tensor_ranks_ == 0) {
        steps_[DataRankOf(rank)].result = &result;
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

void RankGroup::LaunchOn(std::size_t data_rank, const ForwardBatch& batch) {
  {
    const std::lock_guard lock(mutex_);
    steps_[data_rank].batch = &batch;
    ++steps_[data_rank].launched;
  }
  changed_.notify_all();
}

const StepResult& RankGroup::CollectFrom(std::size_t data_rank) {
  const StepResult* result = nullptr;
  {
    std::unique_lock lock(mutex_);
    const DataRankStep& step = steps_[data_rank];
    changed_.wait(lock, [&] {
      const auto first = progress_.begin() + static_cast<std::ptrdiff_t>(data_rank * tensor_ranks_);
      return !group_.failure().empty() ||
             std::all_of(first, first + static_cast<std::ptrdiff_t>(tensor_ranks_),
                         [&](const Progress& rank) { return rank.steps == step.launched; });
    });
    result = step.result;
  }
  // Also where all have finished: what a failed group computes is nothing to be read.
  if (const std::string failure = group_.failure(); !failure.empty()) {
    DeviceFailed(failure);
  }
  return *result;
}

// Of its slowest tensor rank.  Ranks that wait on their devices take as long as the step.
std::int64_t RankGroup::OwnUsOf(std::size_t data_rank) const {
  const std::lock_guard lock(mutex_);
  std::chrono::nanoseconds own{};
  for (std::size_t rank = 0; rank < tensor_ranks_; ++rank) {
    own = std::max(own, progress_[data_rank * tensor_ranks_ + rank].own);
  }
  return std::chrono::duration_cast<std::chrono::microseconds>(own).count();
}

// Recorded steps meet on the devices, where nobody is absent: a rank that has queued its step waits
// for one that has not.  Where all have, any of those that have not finished may be the one.
std::vector<int> RankGroup::Late() const {
  std::vector<int> late = group_.Absent();
  const std::lock_guard lock(mutex_);
  for (const auto done : {&Progress::queued, &Progress::steps}) {
    if (!late.empty()) {
      break;
    }
    for (std::size_t rank = 0; rank < progress_.size(); ++rank) {
      if (progress_[rank].*done < steps_[DataRankOf(rank)].launched) {
        late.push_back(static_cast<int>(rank));
      }
    }
  }
  return late;
}

}  // namespace dsa
