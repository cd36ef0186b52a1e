// Workers that split an index range.  One caller at a time; the caller works too.
//
// Ops of a few microseconds follow one another, so both sides poll for some 20 us before they
// sleep: waking a sleeping thread costs as much as a small op.  A work is cut into a few shares per
// thread, and whoever is free takes the next: a slow CPU does less, and where other processes hold
// the CPUs, the caller waits only for work that has begun.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace dsa {

// How finely a work is cut.  While the last share is computed all other threads wait.
enum class Shares : std::uint8_t {
  kFew,   // a share begins with work of its own, such as reading inputs that all its indices need
  kMany,  // it does not: rows by themselves, the longest works of a step
};

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
    ParallelFor(count, Shares::kFew, body);
  }
  template <typename Body>
  void ParallelFor(std::int64_t count, Shares shares, const Body& body) {
    Run(
        count, shares,
        [](const void* context, std::int64_t first, std::int64_t last, int thread) {
          (*static_cast<const Body*>(context))(first, last, thread);
        },
        &body);
  }

 private:
  using Function = void (*)(const void* context, std::int64_t first, std::int64_t last, int thread);

  void Run(std::int64_t count, Shares shares, Function function, const void* context);
  void WorkerLoop(int thread);
  void RunShares(int thread);

  std::vector<std::thread> workers_;  // constant after construction

  // The work at hand: written by the caller before it offers shares, read by whoever has taken one.
  std::int64_t count_ = 0;
  std::int32_t shares_ = 0;  // 1 .. count
  Function function_ = nullptr;
  const void* context_ = nullptr;

  std::atomic<std::int32_t> offered_{0};  // shares that none has taken (release; acquire)
  std::atomic<std::int32_t> pending_{0};  // shares that are not finished (release; acquire)

  // What sleeping workers wait for: raised after shares were offered (release; acquire).
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<bool> stopping_{false};  // before generation_ is raised (relaxed)
};

}  // namespace dsa
