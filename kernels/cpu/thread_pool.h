// Workers that split an index range.  One caller at a time; the caller works too.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace dsa {

class ThreadPool final {
 public:
  explicit ThreadPool(int threads);  // > 0, the caller included: 1 starts no thread
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(first, last, thread) on disjoint ranges that cover [0, count), thread in
  // [0, threads()).  Returns when all have returned.  Allocates nothing.
  template <typename Body>
  void ParallelFor(std::int64_t count, const Body& body) {
    Run(
        count,
        [](const void* context, std::int64_t first, std::int64_t last, int thread) {
          (*static_cast<const Body*>(context))(first, last, thread);
        },
        &body);
  }

 private:
  using Function = void (*)(const void* context, std::int64_t first, std::int64_t last, int thread);

  void Run(std::int64_t count, Function function, const void* context);
  void WorkerLoop(int thread);
  void RunShare(int thread) const;

  std::vector<std::thread> workers_;

  std::mutex mutex_;  // guards everything below
  std::condition_variable started_;
  std::condition_variable finished_;
  std::uint64_t generation_ = 0;
  int pending_ = 0;
  bool stopping_ = false;
  std::int64_t count_ = 0;
  Function function_ = nullptr;
  const void* context_ = nullptr;
};

}  // namespace dsa
