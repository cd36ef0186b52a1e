#include "kernels/cpu/thread_pool.h"

#include "common/check.h"

namespace dsa {

ThreadPool::ThreadPool(int threads) {
  DSA_CHECK(threads > 0, "ThreadPool: threads={}", threads);
  workers_.reserve(static_cast<std::size_t>(threads) - 1);
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { WorkerLoop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  started_.notify_all();
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
  {
    const std::lock_guard lock(mutex_);
    count_ = count;
    function_ = function;
    context_ = context;
    pending_ = static_cast<int>(workers_.size());
    ++generation_;
  }
  started_.notify_all();
  RunShare(0);
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return pending_ == 0; });
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
  std::uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    started_.wait(lock, [&] { return stopping_ || generation_ != seen; });
    if (stopping_) {
      return;
    }
    seen = generation_;
    lock.unlock();
    RunShare(thread);
    lock.lock();
    if (--pending_ == 0) {
      finished_.notify_one();
    }
  }
}

}  // namespace dsa
