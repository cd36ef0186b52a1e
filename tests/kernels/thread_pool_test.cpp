// ThreadPool: every index once, on disjoint ranges, whatever the count.
#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <cstdint>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::thread_pool_test {

TEST_CASE("ParallelFor visits every index once", "[kernels][thread_pool]") {
  const auto threads = GENERATE(1, 2, 5);
  const auto shares = GENERATE(Shares::kFew, Shares::kMany);
  ThreadPool pool(threads);
  CHECK(pool.threads() == threads);
  std::vector<int> visits(1000);
  std::atomic<int> wrong_threads{0};
  for (int round = 0; round < 300; ++round) {  // counts around the number of threads come often
    const std::int64_t count = round % 3 == 0 ? round % 8 : round;
    visits.assign(visits.size(), 0);
    pool.ParallelFor(count, shares, [&](std::int64_t first, std::int64_t last, int thread) {
      if (thread < 0 || thread >= threads || first >= last) {
        wrong_threads.fetch_add(1, std::memory_order_relaxed);
      }
      for (std::int64_t i = first; i < last; ++i) {
        ++visits[static_cast<std::size_t>(i)];
      }
    });
    for (std::size_t i = 0; i < visits.size(); ++i) {
      if (visits[i] != (static_cast<std::int64_t>(i) < count ? 1 : 0)) {
        FAIL("index " << i << " of " << count << " was visited " << visits[i] << " times");
      }
    }
  }
  CHECK(wrong_threads.load() == 0);
}

// A thread that others keep from its CPU delays the work by what it has begun, no more.
TEST_CASE("A thread that is held up leaves the rest to others", "[kernels][thread_pool]") {
  struct Case {
    Shares shares;
    std::int64_t begun_max;
  };
  const auto [shares, begun_max] = GENERATE(Case{Shares::kFew, 250}, Case{Shares::kMany, 63});
  constexpr std::int64_t kCount = 1000;
  ThreadPool pool(2);
  std::atomic<std::int64_t> done{0};
  std::atomic<std::int64_t> begun{0};  // by the thread that is held up
  pool.ParallelFor(kCount, shares, [&](std::int64_t first, std::int64_t last, int thread) {
    if (thread == 0) {
      begun.fetch_add(last - first);
      while (done.load() + begun.load() < kCount) {
      }
    }
    done.fetch_add(last - first);
  });
  CHECK(done.load() == kCount);
  CHECK(begun.load() <= begun_max);
}

TEST_CASE("A pool that slept works on, and one that never worked ends", "[kernels][thread_pool]") {
  const ThreadPool idle(3);
  ThreadPool pool(3);
  ThreadPool other(2);  // its long work lets the threads of the first go to sleep
  std::atomic<std::int64_t> sum{0};
  for (int round = 0; round < 20; ++round) {
    pool.ParallelFor(100, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t i = first; i < last; ++i) {
        sum.fetch_add(i, std::memory_order_relaxed);
      }
    });
    other.ParallelFor(2, [&](std::int64_t, std::int64_t, int) {
      for (int i = 0; i < 200'000; ++i) {
        sum.fetch_add(0, std::memory_order_relaxed);
      }
    });
  }
  CHECK(sum.load() == std::int64_t{20} * 4950);
}

}  // namespace dsa::thread_pool_test
