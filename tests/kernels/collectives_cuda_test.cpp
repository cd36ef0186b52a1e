// Collectives of ranks that are GPUs: sums in the order of ranks and rounded once, parts in their
// places, eager and in graphs, whatever was called before; ranks that call something else are
// released.  Where there are fewer GPUs than ranks they share them, which the kernels allow.
#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/testing.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

// All blocks of the ranks that share a device must be there at once.
constexpr int kRanksPerDevice = 3;

int Devices() {
  static const int count = [] {
    int devices = 0;
    while (CudaBackend::Make(devices).ok()) {
      ++devices;
    }
    return devices;
  }();
  return count;
}

// On one H100 and one H200, calls of four ranks and recorded chains of two were seen to stand
// still, on two GPUs never, with up to three ranks on each.  A model's ranks have a GPU each.
bool Fit(int ranks, int devices = 1) {
  const bool fit = Devices() >= devices && ranks <= kRanksPerDevice * Devices();
  if (!fit) {
    WARN("not run: " << ranks << " ranks on " << Devices() << " GPU");
  }
  return fit;
}

struct GpuRanks {
  explicit GpuRanks(int ranks) : group(ranks), together(ranks) {
    std::vector<CudaBackend*> joined;
    for (int rank = 0; rank < ranks; ++rank) {
      auto made = CudaBackend::Make(rank % Devices());
      REQUIRE(made.ok());
      backends.push_back(std::move(made).value());
      joined.push_back(backends.back().get());
    }
    const Status status = CudaBackend::JoinPeers(joined, group);
    REQUIRE(status.ok());
  }

  // body(rank, backend) on a thread of each rank; afterwards everything queued has run.  Kernels
  // that wait for each other for ever are released, and the group has failed.
  void Run(const std::function<void(int, CudaBackend&)>& body) {
    constexpr auto kLongest = std::chrono::seconds(20);
    std::promise<void> done;
    std::thread watch([&, ended = done.get_future()] {
      if (ended.wait_for(kLongest) == std::future_status::timeout) {
        group.Fail("kernels wait for each other");
      }
    });
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < backends.size(); ++rank) {
      threads.emplace_back([&, rank] {
        backends[rank]->BindThread();
        body(static_cast<int>(rank), *backends[rank]);
        backends[rank]->Synchronize();
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    done.set_value();
    watch.join();
  }

  ThreadGroup group;
  std::barrier<> together;  // of the ranks' threads: nobody's kernels wait for who still records
  std::vector<std::unique_ptr<CudaBackend>> backends;
};

// A kernel that is loaded while another rank's waits on the same device would wait for it in turn.
// Before the driver starts.
[[maybe_unused]] const int kLoadsAtOnce = setenv("CUDA_MODULE_LOADING", "EAGER", 1);

struct Extents {
  std::int64_t rows;
  std::int64_t cols;
  std::size_t size() const { return static_cast<std::size_t>(rows * cols); }
};

// As of threads (collectives_test.cpp): large values of the first two cancel.
std::vector<float> PartialOf(int rank, int round, std::size_t size) {
  std::mt19937_64 random(static_cast<std::uint64_t>(rank * 1000 + round));
  std::vector<float> values(size);
  for (std::size_t i = 0; i < size; ++i) {
    const float large = i % 3 == 0 && rank < 2 ? 0x1p40F * (rank == 0 ? 1.0F : -1.0F) : 0.0F;
    values[i] = large + static_cast<float>(random() % 100'000) / 7.0F;
  }
  return values;
}

template <typename T>
T RoundTo(float value) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return ToBf16(value);
  } else {
    return value;
  }
}

float Widened(float value) {
  return value;
}
float Widened(Bf16 value) {
  return ToFloat(value);
}

template <typename T>
std::vector<T> SumOf(int ranks, int round, std::size_t size) {
  std::vector<float> sums = PartialOf(0, round, size);
  for (int rank = 1; rank < ranks; ++rank) {
    const std::vector<float> partial = PartialOf(rank, round, size);
    for (std::size_t i = 0; i < size; ++i) {
      sums[i] += partial[i];
    }
  }
  std::vector<T> rounded(size);
  std::transform(sums.begin(), sums.end(), rounded.begin(), RoundTo<T>);
  return rounded;
}

template <typename T>
constexpr DataType kTypeOf = std::is_same_v<T, Bf16> ? DataType::kBf16 : DataType::kF32;

// Device memory of a rank's reductions.
template <typename T>
struct Operands {
  Operands(CudaBackend& backend, const Extents& most)
      : partial(backend.Allocate(most.size() * sizeof(float)).value()),
        sum(backend.Allocate(most.size() * sizeof(T)).value()) {}

  AllReduceParams Params(const Extents& extents) const {
    return {.partial = {partial.data(), DataType::kF32, extents.rows, extents.cols, extents.cols},
            .sum = {sum.data(), kTypeOf<T>, extents.rows, extents.cols, extents.cols}};
  }
  std::vector<T> Read(CudaBackend& backend, const Extents& extents) const {
    std::vector<T> values(extents.size());
    backend.Synchronize();  // a copy to pageable memory keeps others from queueing while it waits
    backend.CopyToHost(values.data(), sum.data(), values.size() * sizeof(T));
    backend.Synchronize();
    return values;
  }

  DeviceBuffer partial;
  DeviceBuffer sum;
};

enum class Mistake { kNone, kOtherOrder, kStale };

constexpr Extents kMost{.rows = 64, .cols = 7168};
// As lines and by shares; values that nothing divides, and one.
const std::vector<Extents>& AllExtents() {
  static const std::vector<Extents> all = {{1, 7168},  {3, 301},   {1, 1},     {36, 7168},
                                           {37, 7168}, {64, 7168}, {61, 6999}, {2, 5}};
  return all;
}

// Whether every rank got the right sums: calls of all extents one behind the other, nobody waits.
template <typename T>
bool AllReduceIsRight(int ranks, Mistake mistake) {
  GpuRanks all(ranks);
  std::vector<int> wrong(static_cast<std::size_t>(ranks));
  all.Run([&](int rank, CudaBackend& backend) {
    const Operands<T> operands(backend, kMost);
    for (int round = 0; round < 24; ++round) {
      const Extents& extents = AllExtents()[static_cast<std::size_t>(round) % AllExtents().size()];
      const int adds = mistake == Mistake::kOtherOrder ? (rank + 1) % ranks : rank;
      const bool stale = mistake == Mistake::kStale && rank == 1 && round == 20;
      const std::vector<float> next = PartialOf(adds, stale ? round - 1 : round, extents.size());
      backend.CopyToDevice(operands.partial.data(), next.data(), next.size() * sizeof(float));
      backend.Zero(operands.sum.data(), kMost.size() * sizeof(T));
      backend.AllReduce(operands.Params(extents));
      const std::vector<T> sum = operands.Read(backend, extents);
      const std::vector<T> expected = SumOf<T>(ranks, round, extents.size());
      const bool same = std::equal(sum.begin(), sum.end(), expected.begin(),
                                   [](T a, T b) { return Widened(a) == Widened(b); });
      wrong[static_cast<std::size_t>(rank)] += same ? 0 : 1;
    }
  });
  return all.group.failure().empty() &&
         std::all_of(wrong.begin(), wrong.end(), [](int count) { return count == 0; });
}

}  // namespace

TEST_CASE("GPUs add up in the order of ranks, in every round", "[collectives]") {
  const int ranks = GENERATE(1, 2, 3, 4);
  CAPTURE(ranks);
  if (!Fit(ranks)) {
    return;
  }
  CHECK(AllReduceIsRight<float>(ranks, Mistake::kNone));
  CHECK(AllReduceIsRight<Bf16>(ranks, Mistake::kNone));
}

TEST_CASE("GPUs that add in another order or stale sums are seen", "[collectives]") {
  CHECK_FALSE(AllReduceIsRight<float>(3, Mistake::kOtherOrder));
  CHECK_FALSE(AllReduceIsRight<float>(3, Mistake::kStale));
}

TEST_CASE("GPUs round a sum once, to float32 and then to bf16", "[collectives]") {
  GpuRanks all(2);
  // As of threads; a part that was rounded before would not show.
  const std::vector<float> halves[2] = {{1.0F + 0x1p-9F, 1.0F + 0x1p-8F}, {0x1.2p-9F, 0x1p-23F}};
  std::vector<Bf16> sums[2];
  all.Run([&](int rank, CudaBackend& backend) {
    const Operands<Bf16> operands(backend, {.rows = 1, .cols = 2});
    backend.CopyToDevice(operands.partial.data(), halves[rank].data(), 2 * sizeof(float));
    backend.AllReduce(operands.Params({.rows = 1, .cols = 2}));
    sums[rank] = operands.Read(backend, {.rows = 1, .cols = 2});
  });
  for (const std::vector<Bf16>& sum : sums) {
    CHECK(ToFloat(sum[0]) == 1.0F + 0x1p-7F);
    CHECK(ToFloat(sum[1]) == 1.0F + 0x1p-7F);
  }
}

// Sixteen in a row, each adding up what the one before gave: a rank that is ahead must not
// overwrite what another still reads.
TEST_CASE("GPUs repeat recorded chains of collectives on what is there by then", "[collectives]") {
  const auto extents = GENERATE(values<Extents>({{1, 7168}, {64, 7168}, {37, 7001}}));
  constexpr int kRanks = 2;
  constexpr int kChain = 16;
  constexpr int kReplays = 25;
  constexpr GraphId kGraph{1};
  CAPTURE(extents.rows);
  if (!Fit(kRanks, kRanks)) {
    return;
  }
  GpuRanks all(kRanks);
  std::vector<float> results[kRanks];
  const std::vector<float> start = PartialOf(3, 0, extents.size());
  all.Run([&](int rank, CudaBackend& backend) {
    const Operands<float> operands(backend, extents);
    AllReduceParams there = operands.Params(extents);
    AllReduceParams back = there;
    back.partial = there.sum;
    back.sum = {operands.partial.data(), DataType::kF32, extents.rows, extents.cols, extents.cols};
    backend.CopyToDevice(operands.partial.data(), start.data(), start.size() * sizeof(float));
    backend.Record(kGraph, [&] {
      for (int i = 0; i < kChain; i += 2) {
        backend.AllReduce(there);
        backend.AllReduce(back);
      }
    });
    all.together.arrive_and_wait();
    for (int replay = 0; replay < kReplays; ++replay) {
      backend.Replay(kGraph);
      // Powers of two: exact, and back to where it was before the floats end.
      if (replay % 5 == 4) {
        backend.Synchronize();
        std::vector<float> values(extents.size());
        backend.CopyToHost(values.data(), operands.partial.data(), values.size() * sizeof(float));
        backend.Synchronize();
        for (float& value : values) {
          value *= 0x1p-80F;
        }
        backend.CopyToDevice(operands.partial.data(), values.data(), values.size() * sizeof(float));
      }
    }
    results[rank].resize(extents.size());
    backend.Synchronize();
    backend.CopyToHost(results[rank].data(), operands.partial.data(),
                       extents.size() * sizeof(float));
  });
  CHECK(results[0] == start);
  CHECK(results[1] == start);
}

TEST_CASE("GPUs gather columns in the order of ranks", "[collectives]") {
  const auto rows = GENERATE(as<std::int64_t>(), 1, 3, 64);
  if (!Fit(4)) {
    return;
  }
  GpuRanks all(4);
  constexpr std::int64_t kCols[] = {3003, 0, 5, 2051};
  constexpr std::int64_t kWhole = 3003 + 5 + 2051;
  std::vector<float> expected;
  for (std::int64_t i = 0; i < rows * kWhole; ++i) {
    expected.push_back(static_cast<float>(i));
  }
  std::vector<float> wholes[4];
  all.Run([&](int rank, CudaBackend& backend) {
    std::int64_t before = 0;
    for (int other = 0; other < rank; ++other) {
      before += kCols[other];
    }
    const DeviceBuffer source = backend.Allocate(expected.size() * sizeof(float)).value();
    const DeviceBuffer whole = backend.Allocate(expected.size() * sizeof(float)).value();
    backend.CopyToDevice(source.data(), expected.data(), expected.size() * sizeof(float));
    backend.Zero(whole.data(), expected.size() * sizeof(float));
    backend.AllGather(
        {.part = {source.As<float>() + before, DataType::kF32, rows, kCols[rank], kWhole},
         .whole = {whole.data(), DataType::kF32, rows, kWhole, kWhole}});
    wholes[rank].resize(expected.size());
    backend.Synchronize();
    backend.CopyToHost(wholes[rank].data(), whole.data(), expected.size() * sizeof(float));
    backend.Synchronize();
  });
  for (const std::vector<float>& whole : wholes) {
    CHECK(whole == expected);
  }
}

TEST_CASE("GPUs that call different collectives end the group, and nobody waits", "[collectives]") {
  const bool skips = GENERATE(false, true);
  GpuRanks all(3);
  all.Run([&](int rank, CudaBackend& backend) {
    const Operands<float> operands(backend, kMost);
    if (rank != 1 || !skips) {
      backend.AllReduce(operands.Params({.rows = rank == 1 ? 63 : 64, .cols = 7168}));
    }
    backend.AllReduce(operands.Params({.rows = 1, .cols = 7168}));
  });
  CHECK(all.group.failure().find("AllReduce [64, 7168]") != std::string::npos);
}

TEST_CASE("GPUs that wait for one that fails are released", "[collectives]") {
  GpuRanks all(3);
  all.Run([&](int rank, CudaBackend& backend) {
    const Operands<float> operands(backend, kMost);
    backend.Record(GraphId{0}, [&] {
      for (const Extents& extents : AllExtents()) {
        backend.AllReduce(operands.Params(extents));
      }
    });
    all.together.arrive_and_wait();
    if (rank == 1) {
      all.group.Fail("rank 1: planted");
    } else {
      backend.Replay(GraphId{0});
      backend.Synchronize();
    }
  });
  CHECK(all.group.failure() == "rank 1: planted");
}

}  // namespace dsa::testing
