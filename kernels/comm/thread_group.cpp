#include "kernels/comm/thread_group.h"

#include "common/check.h"

#include <algorithm>

#include <fmt/core.h>

namespace dsa {
namespace {

std::string ToText(const CollectiveCall& call) {
  return fmt::format("{} [{}, {}] of type {}", call.op, call.rows, call.cols,
                     static_cast<int>(call.type));
}

}  // namespace

ThreadGroup::ThreadGroup(int ranks)
    : params_(static_cast<std::size_t>(std::max(ranks, 0))), arrived_(params_.size()) {
  DSA_CHECK(ranks > 0, "ThreadGroup: {} ranks", ranks);
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
    FailLocked(fmt::format("rank {} called {} where rank {} called {}", rank, ToText(call), first_,
                           ToText(call_)));
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
  changed_.wait(lock, [&] { return meets_ >= complete || failed_; });
  return meets_ >= complete;  // a group that fails later fails at the next call
}

// Everybody who waits here has met all others, and they leave soon, even of a failed group: so
// nobody goes on while another still reads.
void ThreadGroup::Leave() {
  std::unique_lock lock(mutex_);
  ++leaves_;
  const std::int64_t complete = (leaves_ + ranks() - 1) / ranks() * ranks();
  if (leaves_ == complete) {
    changed_.notify_all();
    return;
  }
  changed_.wait(lock, [&] { return leaves_ >= complete; });
}

void ThreadGroup::Fail(std::string_view reason) {
  const std::lock_guard lock(mutex_);
  FailLocked(reason);
}

void ThreadGroup::FailLocked(std::string_view reason) {
  if (!failed_) {
    failed_ = true;
    failure_ = reason;
    changed_.notify_all();
  }
}

std::string ThreadGroup::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

std::vector<int> ThreadGroup::Absent() const {
  const std::lock_guard lock(mutex_);
  std::vector<int> absent;
  for (int rank = 0; meets_ % ranks() != 0 && rank < ranks(); ++rank) {
    if (!arrived_[static_cast<std::size_t>(rank)]) {
      absent.push_back(rank);
    }
  }
  return absent;
}

}  // namespace dsa
