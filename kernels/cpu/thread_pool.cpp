#include "kernels/cpu/thread_pool.h"

#include "common/check.h"

#include <algorithm>

#include <immintrin.h>

namespace dsa {
namespace {

constexpr int kPolls = 500;  // of some 40 ns

// Shares per thread of a work.  Some CPUs are slower than others at times, since other processes or
// a sibling use them too: whoever is done first takes more.
constexpr std::int64_t PerThread(Shares shares) {
  return shares == Shares::kFew ? 2 : 8;
}

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
  stopping_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) {
    worker.join();
  }
}

void ThreadPool::Run(std::int64_t count, Shares shares, Function function, const void* context) {
  if (workers_.empty() || count <= 1) {
    if (count > 0) {
      function(context, 0, count, 0);
    }
    return;
  }
  count_ = count;
  function_ = function;
  context_ = context;
  shares_ = static_cast<std::int32_t>(std::min(count, PerThread(shares) * threads()));
  pending_.store(shares_, std::memory_order_relaxed);
  offered_.store(shares_, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  RunShares(0);
  for (std::int32_t left = pending_.load(std::memory_order_acquire); left != 0;
       left = pending_.load(std::memory_order_acquire)) {
    WaitWhileEqual(pending_, left);
  }
}

// Takes shares until none is left: contiguous ranges that differ by at most one index.  The caller
// offers the next only after these are finished, so a share taken late is one of a later work, and
// as good.
void ThreadPool::RunShares(int thread) {
  std::int32_t left = offered_.load(std::memory_order_acquire);
  while (left > 0) {
    if (!offered_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                        std::memory_order_acquire)) {
      continue;
    }
    const std::int64_t share = shares_ - left;
    function_(context_, count_ * share / shares_, count_ * (share + 1) / shares_, thread);
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      pending_.notify_one();
    }
    left = offered_.load(std::memory_order_acquire);
  }
}

void ThreadPool::WorkerLoop(int thread) {
  std::uint32_t seen = 0;
  while (true) {
    WaitWhileEqual(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) {
      return;
    }
    RunShares(thread);
  }
}

}  // namespace dsa
