#include "kernels/comm/thread_group.h"

#include "common/check.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::size_t kNotedAhead = 1024;  // of a step; while graphs are recorded there are more

std::string ToText(const CollectiveCall& call) {
  return fmt::format("{} [{}, {}] of type {}", call.op, call.rows, call.cols,
                     static_cast<int>(call.type));
}

}  // namespace

ThreadGroup::ThreadGroup(int ranks, int parts)
    : params_(static_cast<std::size_t>(std::max(ranks, 0))),
      arrived_(params_.size()),
      waited_(params_.size()),
      noted_(params_.size()),
      calls_(kNotedAhead) {
  DSA_CHECK(ranks > 0 && parts > 0 && ranks % parts == 0, "ThreadGroup: {} ranks in {} parts",
            ranks, parts);
  for (int part = 0; parts > 1 && part < parts; ++part) {
    parts_.push_back(std::make_unique<ThreadGroup>(ranks / parts));
  }
}

ThreadGroup::PartSeat ThreadGroup::PartOf(int rank) {
  DSA_CHECK(rank >= 0 && rank < ranks(), "ThreadGroup: rank {} of {}", rank, ranks());
  if (parts_.empty()) {
    return {.group = this, .rank = rank};
  }
  const int each = ranks() / static_cast<int>(parts_.size());
  return {.group = parts_[static_cast<std::size_t>(rank / each)].get(), .rank = rank % each};
}

bool ThreadGroup::Meet(int rank, const CollectiveCall& call, const void* params) {
  DSA_CHECK(rank >= 0 && rank < ranks(), "ThreadGroup: rank {} of {}", rank, ranks());
  const auto index = static_cast<std::size_t>(rank);
  std::unique_lock lock(mutex_);
  if (failed_) {
    return false;
  }
  DSA_CHECK(!arrived_[index], "ThreadGroup: rank {} came twice to {}", rank, ToText(call_));
  if (meets_ % ranks() == 0) {
    call_ = call;
    first_ = rank;
  } else if (call != call_) {
    FailOtherCall(rank, call, {.call = call_, .rank = first_});
    return false;
  }
  params_[index] = params;
  arrived_[index] = true;
  ++meets_;
  const std::int64_t complete = (meets_ + ranks() - 1) / ranks() * ranks();
  if (meets_ == complete) {
    std::fill(arrived_.begin(), arrived_.end(), false);
    changed_.notify_all();
    return true;
  }
  WaitUntil(lock, rank, [&] { return meets_ >= complete || failed_; });
  return meets_ >= complete;  // a group that fails later fails at the next call
}

// Everybody who waits here has met all others, and they leave soon, even of a failed group: so
// nobody goes on while another still reads.
void ThreadGroup::Leave(int rank) {
  std::unique_lock lock(mutex_);
  ++leaves_;
  const std::int64_t complete = (leaves_ + ranks() - 1) / ranks() * ranks();
  if (leaves_ == complete) {
    changed_.notify_all();
    return;
  }
  WaitUntil(lock, rank, [&] { return leaves_ >= complete; });
}

template <typename Done>
void ThreadGroup::WaitUntil(std::unique_lock<std::mutex>& lock, int rank, const Done& done) {
  const auto start = std::chrono::steady_clock::now();
  changed_.wait(lock, done);
  waited_[static_cast<std::size_t>(rank)] += std::chrono::steady_clock::now() - start;
}

std::chrono::nanoseconds ThreadGroup::Waited(int rank) const {
  DSA_CHECK(rank >= 0 && rank < ranks(), "ThreadGroup: rank {} of {}", rank, ranks());
  const std::lock_guard lock(mutex_);
  return waited_[static_cast<std::size_t>(rank)];
}

void ThreadGroup::Note(int rank, const CollectiveCall& call) {
  DSA_CHECK(rank >= 0 && rank < ranks(), "ThreadGroup: rank {} of {}", rank, ranks());
  const std::lock_guard lock(mutex_);
  if (failed_) {
    return;
  }
  const std::int64_t most = *std::max_element(noted_.begin(), noted_.end());
  const std::int64_t index = noted_[static_cast<std::size_t>(rank)]++;
  NotedCall& noted = NotedAt(index);
  if (index == most) {  // the first to make it
    noted = {.call = call, .rank = rank};
  } else if (call != noted.call) {
    FailOtherCall(rank, call, noted);
  }
}

// The place of a call that is noted now, with room made for it.
ThreadGroup::NotedCall& ThreadGroup::NotedAt(std::int64_t index) {
  const std::int64_t begin = *std::min_element(noted_.begin(), noted_.end()) - 1;  // is still read
  if (index - begin >= static_cast<std::int64_t>(calls_.size())) {
    std::vector<NotedCall> larger(2 * calls_.size());
    for (std::int64_t i = std::max<std::int64_t>(begin, 0); i < index; ++i) {
      const auto at = static_cast<std::size_t>(i);
      larger[at % larger.size()] = calls_[at % calls_.size()];
    }
    calls_ = std::move(larger);
  }
  return calls_[static_cast<std::size_t>(index) % calls_.size()];
}

void ThreadGroup::OnFailure(std::function<void()> release) {
  for (const std::unique_ptr<ThreadGroup>& part : parts_) {
    part->OnFailure(release);
  }
  const std::lock_guard lock(mutex_);
  release_ = std::move(release);
}

void ThreadGroup::FailOtherCall(int rank, const CollectiveCall& call, const NotedCall& first) {
  FailLocked(fmt::format("rank {} called {} where rank {} called {}", rank, ToText(call),
                         first.rank, ToText(first.call)));
}

void ThreadGroup::Fail(std::string_view reason) {
  {
    const std::lock_guard lock(mutex_);
    FailLocked(reason);
  }
  for (const std::unique_ptr<ThreadGroup>& part : parts_) {
    part->Fail(reason);
  }
}

void ThreadGroup::FailLocked(std::string_view reason) {
  if (!failed_) {
    failed_ = true;
    failure_ = reason;
    changed_.notify_all();
    if (release_) {
      release_();
    }
  }
}

std::string ThreadGroup::failure() const {
  {
    const std::lock_guard lock(mutex_);
    if (failed_) {
      return failure_;
    }
  }
  for (const std::unique_ptr<ThreadGroup>& part : parts_) {
    if (std::string failure = part->failure(); !failure.empty()) {
      return failure;
    }
  }
  return {};
}

std::vector<int> ThreadGroup::Absent() const {
  std::vector<int> absent;
  int first_rank = 0;
  for (const std::unique_ptr<ThreadGroup>& part : parts_) {
    part->AddAbsent(first_rank, absent);
    first_rank += part->ranks();
  }
  if (absent.empty()) {  // else the ranks that wait in a part would be named for others that do
    AddAbsent(0, absent);
  }
  return absent;
}

void ThreadGroup::AddAbsent(int first_rank, std::vector<int>& absent) const {
  const std::lock_guard lock(mutex_);
  for (int rank = 0; meets_ % ranks() != 0 && rank < ranks(); ++rank) {
    if (!arrived_[static_cast<std::size_t>(rank)]) {
      absent.push_back(first_rank + rank);
    }
  }
}

}  // namespace dsa
