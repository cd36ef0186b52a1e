#include "kernels/cpu/thread_pool.h"

#include "common/check.h"

#include <immintrin.h>

namespace dsa {
namespace {

constexpr int kPolls = 500;  // of some 40 ns

// Returns once `value` is seen to differ from `old` (acquire).
template <typename T>
void WaitWhileEqual(const std::atomic<T>& value, T old) {
  for (int poll = 0; poll < kPolls; ++poll) {
    if (value.load(std::memory_order_acquire) != old) {
      return;
    }
    _mm_pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  DSA_CHECK(threads > 0, "ThreadPool: threads={}", threads);
  workers_.reserve(static_cast<std::size_t>(threads) - 1);
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { WorkerLoop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stopping_ = true;
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadPool::Run(std::int64_t count, Function function, const void* context) {
  if (workers_.empty() || count <= 1) {
    if (count > 0) {
      function(context, 0, count, 0);
    }
    return;
  }
  count_ = count;
  function_ = function;
  context_ = context;
  pending_.store(static_cast<std::int32_t>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  RunShare(0);
  for (std::int32_t left = pending_.load(std::memory_order_acquire); left != 0;
       left = pending_.load(std::memory_order_acquire)) {
    WaitWhileEqual(pending_, left);
  }
}

// Contiguous shares that differ by at most one index.
void ThreadPool::RunShare(int thread) const {
  const std::int64_t first = count_ * thread / threads();
  const std::int64_t last = count_ * (thread + 1) / threads();
  if (first < last) {
    function_(context_, first, last, thread);
  }
}

void ThreadPool::WorkerLoop(int thread) {
  std::uint32_t seen = 0;
  while (true) {
    WaitWhileEqual(generation_, seen);
    ++seen;  // one by one: a caller waits for every worker before it raises it again
    if (stopping_) {
      return;
    }
    RunShare(thread);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      pending_.notify_one();
    }
  }
}

}  // namespace dsa
