// Workers that split an index range.  One caller at a time; the caller works too.
//
// Ops of a few microseconds follow one another, so both sides poll for some 20 us before they
// sleep: waking a sleeping thread costs as much as a small op.
#pragma once

#include <atomic>
#include <cstdint>
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
  // [0, threads()).  Returns when all have returned.  Allocates nothing.  Bodies must not call
  // ParallelFor.
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

  std::vector<std::thread> workers_;  // constant after construction

  // The work at hand: written by the caller before it raises generation_ (release), read by workers
  // after they saw that (acquire), and left alone until pending_ is 0.
  std::int64_t count_ = 0;
  Function function_ = nullptr;
  const void* context_ = nullptr;
  bool stopping_ = false;

  std::atomic<std::uint32_t> generation_{0};
  std::atomic<std::int32_t> pending_{0};  // workers that have not finished (release; acquire)
};

}  // namespace dsa
