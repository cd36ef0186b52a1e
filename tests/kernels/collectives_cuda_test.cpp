// Collectives of ranks that are GPUs: sums in the order of ranks and rounded once, parts in their
// places, eager and in graphs, whatever was called before; ranks that call something else are
// released.  Through the ranks' memory and over NCCL, which adds two in their order.  Where there
// are fewer GPUs than ranks they share them, which the kernels allow.
#include "kernels/comm/collectives.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/gpu_ranks.h"
#include "tests/testing.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

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
bool AllReduceIsRight(Through through, int ranks, Mistake mistake) {
  GpuRanks all(ranks, 1, through);
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
  const Through through = GENERATE(Through::kPeers, Through::kNccl);
  const int ranks = GENERATE(1, 2, 3, 4);
  CAPTURE(through, ranks);
  if (!Fit(ranks, 1, through) || (through == Through::kNccl && ranks > 2)) {
    return;
  }
  CHECK(AllReduceIsRight<float>(through, ranks, Mistake::kNone));
  CHECK(AllReduceIsRight<Bf16>(through, ranks, Mistake::kNone));
}

TEST_CASE("GPUs that add in another order or stale sums are seen", "[collectives]") {
  CHECK_FALSE(AllReduceIsRight<float>(Through::kPeers, 3, Mistake::kOtherOrder));
  CHECK_FALSE(AllReduceIsRight<float>(Through::kPeers, 3, Mistake::kStale));
  if (Fit(2, 2, Through::kNccl)) {
    CHECK_FALSE(AllReduceIsRight<float>(Through::kNccl, 2, Mistake::kStale));
  }
}

TEST_CASE("GPUs round a sum once, to float32 and then to bf16", "[collectives]") {
  const Through through = GENERATE(Through::kPeers, Through::kNccl);
  if (!Fit(2, 1, through)) {
    return;
  }
  GpuRanks all(2, 1, through);
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
  const Through through = GENERATE(Through::kPeers, Through::kNccl);
  CAPTURE(through, extents.rows);
  if (!Fit(kRanks, kRanks, through)) {
    return;
  }
  GpuRanks all(kRanks, 1, through);
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

namespace {

// Whether every rank has all columns in their places, after one call or a replay of it.
bool AllGatherIsRight(Through through, const std::vector<std::int64_t>& cols, std::int64_t rows,
                      bool recorded) {
  const std::int64_t all_cols = std::accumulate(cols.begin(), cols.end(), std::int64_t{0});
  const auto ranks = static_cast<int>(cols.size());
  GpuRanks all(ranks, 1, through);
  std::vector<float> expected;
  for (std::int64_t i = 0; i < rows * all_cols; ++i) {
    expected.push_back(static_cast<float>(i));
  }
  std::vector<int> right(cols.size());
  all.Run([&](int rank, CudaBackend& backend) {
    const std::int64_t before = std::accumulate(cols.begin(), cols.begin() + rank, std::int64_t{0});
    const std::int64_t own = cols[static_cast<std::size_t>(rank)];
    const DeviceBuffer source = backend.Allocate(expected.size() * sizeof(float)).value();
    const DeviceBuffer whole = backend.Allocate(expected.size() * sizeof(float)).value();
    backend.CopyToDevice(source.data(), expected.data(), expected.size() * sizeof(float));
    backend.Zero(whole.data(), expected.size() * sizeof(float));
    const AllGatherParams params = {
        .part = {source.As<float>() + before, DataType::kF32, rows, own, all_cols},
        .whole = {whole.data(), DataType::kF32, rows, all_cols, all_cols}};
    if (recorded) {
      backend.Record(GraphId{0}, [&] { backend.AllGather(params); });
      all.together.arrive_and_wait();
      backend.Replay(GraphId{0});
      backend.Replay(GraphId{0});
    } else {
      backend.AllGather(params);
    }
    std::vector<float> values(expected.size());
    backend.Synchronize();
    backend.CopyToHost(values.data(), whole.data(), expected.size() * sizeof(float));
    backend.Synchronize();
    right[static_cast<std::size_t>(rank)] = values == expected ? 1 : 0;
  });
  return right == std::vector<int>(cols.size(), 1);
}

}  // namespace

TEST_CASE("GPUs gather columns in the order of ranks", "[collectives]") {
  const auto rows = GENERATE(as<std::int64_t>(), 1, 3, 64);
  if (Fit(4)) {
    CHECK(AllGatherIsRight(Through::kPeers, {3003, 0, 5, 2051}, rows, false));
  }
  for (const std::vector<std::int64_t>& cols :
       std::vector<std::vector<std::int64_t>>{{3003, 2051}, {0, 17}, {5, 0}}) {
    for (const bool recorded : {false, true}) {
      CAPTURE(rows, cols.front(), recorded);
      if (Fit(2, 2, Through::kNccl)) {
        CHECK(AllGatherIsRight(Through::kNccl, cols, rows, recorded));
        CHECK(AllGatherIsRight(Through::kPeers, cols, rows, recorded));
      }
    }
  }
}

// 128 MiB of it.
TEST_CASE("GPUs over NCCL cut what their buffer has not room for", "[collectives]") {
  if (!Fit(2, 2, Through::kNccl)) {
    return;
  }
  CHECK(AllGatherIsRight(Through::kNccl, {60'001, 70'003}, 300, false));
  constexpr Extents kLarge{.rows = 4700, .cols = 7168};
  GpuRanks all(2, 1, Through::kNccl);
  const std::vector<Bf16> expected = SumOf<Bf16>(2, 0, kLarge.size());
  std::vector<int> right(2);
  all.Run([&](int rank, CudaBackend& backend) {
    const Operands<Bf16> operands(backend, kLarge);
    const std::vector<float> part = PartialOf(rank, 0, kLarge.size());
    backend.CopyToDevice(operands.partial.data(), part.data(), part.size() * sizeof(float));
    backend.AllReduce(operands.Params(kLarge));
    const std::vector<Bf16> sum = operands.Read(backend, kLarge);
    right[static_cast<std::size_t>(rank)] =
        std::equal(sum.begin(), sum.end(), expected.begin(),
                   [](Bf16 a, Bf16 b) { return ToFloat(a) == ToFloat(b); })
            ? 1
            : 0;
  });
  CHECK(right == std::vector<int>{1, 1});
}

TEST_CASE("GPUs that call different collectives end the group, and nobody waits", "[collectives]") {
  const bool skips = GENERATE(false, true);
  const Through through = GENERATE(Through::kPeers, Through::kNccl);
  const int ranks = through == Through::kNccl ? 2 : 3;
  if (!Fit(ranks, 1, through)) {
    return;
  }
  GpuRanks all(ranks, 1, through);
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
  const Through through = GENERATE(Through::kPeers, Through::kNccl);
  const int ranks = through == Through::kNccl ? 2 : 3;
  if (!Fit(ranks, 1, through)) {
    return;
  }
  GpuRanks all(ranks, 1, through);
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
