// Collectives of ranks that are threads: sums in the order of ranks and rounded once, parts in
// their places, on every rank and in every round; a rank that leaves the order ends the group and
// hangs nobody.  And the products that leave partial sums for them.
#include "kernels/comm/collectives.h"

#include "kernels/comm/thread_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/routed_experts.h"
#include "tests/testing.h"

#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing::collectives_test {
namespace {

// A group and a backend for each rank.
struct Ranks {
  explicit Ranks(int ranks, int threads = 1) : group(ranks) {
    for (int rank = 0; rank < ranks; ++rank) {
      backends.push_back(
          std::make_unique<CpuBackend>(threads, CpuSeat{.group = &group, .rank = rank}));
    }
  }

  // body(rank, backend) on a thread of each rank.
  void Run(const std::function<void(int, Backend&)>& body) const {
    std::vector<std::thread> threads;
    for (std::size_t rank = 0; rank < backends.size(); ++rank) {
      threads.emplace_back([&, rank] { body(static_cast<int>(rank), *backends[rank]); });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  }

  ThreadGroup group;
  std::vector<std::unique_ptr<CpuBackend>> backends;
};

template <typename T>
ConstAnyMatrix ViewOf(const std::vector<T>& values, DataType type, std::int64_t rows) {
  const std::int64_t cols =
      static_cast<std::int64_t>(values.size()) / std::max<std::int64_t>(rows, 1);
  return {.data = values.data(), .type = type, .rows = rows, .cols = cols, .row_stride = cols};
}
template <typename T>
AnyMatrix ViewOf(std::vector<T>& values, DataType type, std::int64_t rows) {
  const std::int64_t cols =
      static_cast<std::int64_t>(values.size()) / std::max<std::int64_t>(rows, 1);
  return {.data = values.data(), .type = type, .rows = rows, .cols = cols, .row_stride = cols};
}

// What a rank adds in a round.  Large values of the first two cancel: what is added between them
// loses its last bits, so another order gives another sum.
std::vector<double> PartialOf(int rank, int round, std::size_t size) {
  std::mt19937_64 random(static_cast<std::uint64_t>(rank * 1000 + round));
  std::vector<double> values(size);
  for (std::size_t i = 0; i < size; ++i) {
    const double large = i % 3 == 0 && rank < 2 ? 0x1p60 * (rank == 0 ? 1.0 : -1.0) : 0.0;
    values[i] = large + static_cast<double>(random() % 100'000) / 7.0;
  }
  return values;
}

std::vector<float> SumOf(const std::vector<int>& order, int round, std::size_t size) {
  std::vector<double> sums(size);
  for (std::size_t place = 0; place < order.size(); ++place) {
    const std::vector<double> partial = PartialOf(order[place], round, size);
    for (std::size_t i = 0; i < size; ++i) {
      sums[i] = place == 0 ? partial[i] : sums[i] + partial[i];
    }
  }
  return {sums.begin(), sums.end()};
}

constexpr std::int64_t kRows = 3;
constexpr std::size_t kSize = 3 * 300;  // columns that no number of ranks divides into equal shares

enum class Mistake { kNone, kOtherOrder, kStale };

// Whether every rank got the right sum in every round.
bool AllReduceIsRight(int ranks, Mistake mistake) {
  const Ranks all(ranks, 2);
  std::vector<int> order;
  for (int rank = 0; rank < ranks; ++rank) {
    order.push_back(rank);
  }
  std::vector<int> wrong(static_cast<std::size_t>(ranks));
  all.Run([&](int rank, Backend& backend) {
    std::vector<double> partial(kSize);
    for (int round = 0; round < 40; ++round) {
      const int adds = mistake == Mistake::kOtherOrder ? (rank + 1) % ranks : rank;
      const bool stale = mistake == Mistake::kStale && rank == 1 && round == 20;
      const std::vector<double> next = PartialOf(adds, stale ? round - 1 : round, kSize);
      std::copy(next.begin(), next.end(), partial.begin());  // the same memory in every round
      std::vector<float> sum(kSize, NAN);
      backend.AllReduce({.partial = ViewOf(std::as_const(partial), DataType::kF64, kRows),
                         .sum = ViewOf(sum, DataType::kF32, kRows)});
      wrong[static_cast<std::size_t>(rank)] += sum == SumOf(order, round, kSize) ? 0 : 1;
      if (rank == round % ranks) {
        std::this_thread::yield();
      }
    }
  });
  return all.group.failure().empty() &&
         std::all_of(wrong.begin(), wrong.end(), [](int count) { return count == 0; });
}

}  // namespace

TEST_CASE("threads add up in the order of ranks, in every round", "[kernels][collectives]") {
  const int ranks = GENERATE(1, 2, 3, 5);
  CAPTURE(ranks);
  CHECK(AllReduceIsRight(ranks, Mistake::kNone));
}

TEST_CASE("threads that add in another order or stale sums are seen", "[kernels][collectives]") {
  CHECK_FALSE(AllReduceIsRight(3, Mistake::kOtherOrder));
  CHECK_FALSE(AllReduceIsRight(3, Mistake::kStale));
}

TEST_CASE("threads round a sum once, to float32 and then to bf16", "[kernels][collectives]") {
  const Ranks all(2);
  // What is above 1 + 2^-8 goes up to the next bf16; the parts don't show it where one of them was
  // rounded before, to bf16 in the first column, to float32 in the second.
  const std::vector<double> halves[2] = {{1.0 + 0x1p-9, 1.0 + 0x1p-8 + 0x1p-25},
                                         {0x1.2p-9, 0x1p-24}};
  std::vector<Bf16> sums[2] = {std::vector<Bf16>(2), std::vector<Bf16>(2)};
  all.Run([&](int rank, Backend& backend) {
    backend.AllReduce({.partial = ViewOf(halves[rank], DataType::kF64, 1),
                       .sum = ViewOf(sums[rank], DataType::kBf16, 1)});
  });
  for (const std::vector<Bf16>& sum : sums) {
    CHECK(ToFloat(sum[0]) == 1.0F + 0x1p-7F);
    CHECK(ToFloat(sum[1]) == 1.0F + 0x1p-7F);
  }
}

TEST_CASE("threads with no row have nothing to add", "[kernels][collectives]") {
  const Ranks all(2);
  all.Run([&](int /*rank*/, Backend& backend) {
    backend.AllReduce({.partial = {nullptr, DataType::kF64, 0, 8, 8},
                       .sum = {nullptr, DataType::kBf16, 0, 8, 8}});
  });
  CHECK(all.group.failure().empty());
}

TEST_CASE("threads gather columns in the order of ranks", "[kernels][collectives]") {
  const Ranks all(4);
  constexpr std::int64_t kCols[] = {3, 0, 5, 1};
  constexpr std::int64_t kWhole = 9;
  std::vector<float> expected;
  for (std::int64_t i = 0; i < kRows * kWhole; ++i) {
    expected.push_back(static_cast<float>(i));
  }
  std::vector<float> wholes[4];
  all.Run([&](int rank, Backend& backend) {
    std::int64_t before = 0;
    for (int other = 0; other < rank; ++other) {
      before += kCols[other];
    }
    std::vector<float>& whole = wholes[rank];
    whole.assign(expected.size(), NAN);
    backend.AllGather(
        {.part = {expected.data() + before, DataType::kF32, kRows, kCols[rank], kWhole},
         .whole = ViewOf(whole, DataType::kF32, kRows)});
  });
  for (const std::vector<float>& whole : wholes) {
    CHECK(whole == expected);
  }
}

TEST_CASE("threads repeat a recorded collective on what is there by then",
          "[kernels][collectives]") {
  const Ranks all(3);
  constexpr GraphId kGraph{1};
  std::vector<int> wrong(3);
  all.Run([&](int rank, Backend& backend) {
    std::vector<double> partial(kSize);
    std::vector<float> sum(kSize, NAN);
    backend.Record(kGraph, [&] {
      backend.AllReduce({.partial = ViewOf(std::as_const(partial), DataType::kF64, kRows),
                         .sum = ViewOf(sum, DataType::kF32, kRows)});
    });
    for (int round = 0; round < 3; ++round) {
      const std::vector<double> next = PartialOf(rank, round, kSize);
      std::copy(next.begin(), next.end(), partial.begin());
      backend.Replay(kGraph);
      wrong[static_cast<std::size_t>(rank)] += sum == SumOf({0, 1, 2}, round, kSize) ? 0 : 1;
    }
  });
  CHECK(wrong == std::vector<int>{0, 0, 0});
}

TEST_CASE("threads that call different collectives end the group", "[kernels][collectives]") {
  const bool skips = GENERATE(false, true);  // one call too few, or other extents
  const Ranks all(3);
  all.Run([&](int rank, Backend& backend) {
    std::vector<double> partial(8);
    std::vector<float> sum(8);
    std::vector<float> whole(24);
    const std::int64_t rows = rank == 1 && !skips ? 2 : 1;
    if (rank != 1 || !skips) {
      backend.AllReduce({.partial = ViewOf(std::as_const(partial), DataType::kF64, rows),
                         .sum = ViewOf(sum, DataType::kF32, rows)});
    }
    backend.AllGather({.part = ViewOf(std::as_const(sum), DataType::kF32, 1),
                       .whole = ViewOf(whole, DataType::kF32, 1)});
  });
  const std::string failure = all.group.failure();
  CAPTURE(failure);
  CHECK(failure.find("rank 1 called") != std::string::npos);
  CHECK(failure.find(skips ? "AllGather" : "AllReduce [2, 4]") != std::string::npos);
}

TEST_CASE("a group holds the calls that ranks note against each other", "[kernels][collectives]") {
  ThreadGroup group(3);
  int released = 0;
  group.OnFailure([&] { ++released; });
  const auto call = [](std::int64_t i) {
    return CollectiveCall{.op = "AllReduce", .rows = i % 5, .cols = i, .type = DataType::kBf16};
  };
  constexpr std::int64_t kAhead = 5000;  // more than there is room for at first
  for (std::int64_t i = 0; i < kAhead; ++i) {
    group.Note(1, call(i));
  }
  for (std::int64_t i = 0; i < 3 * kAhead; ++i) {
    group.Note(0, call(i));
    group.Note(2, call(i));
    if (i + kAhead < 3 * kAhead) {
      group.Note(1, call(i + kAhead));
    }
  }
  CHECK(group.failure().empty());
  group.Note(2, call(1));
  group.Note(1, call(1));
  group.Note(0, call(6));  // other columns
  CHECK(group.failure() ==
        "rank 0 called AllReduce [1, 6] of type 1 where rank 2 called AllReduce [1, 1] of type 1");
  group.Note(1, call(7));
  CHECK(released == 1);
}

TEST_CASE("a group knows how long each of its ranks waited", "[kernels][collectives]") {
  constexpr std::chrono::milliseconds kLate{5};
  constexpr CollectiveCall kCall{.op = "AllReduce", .rows = 1, .cols = 1, .type = DataType::kF32};
  ThreadGroup group(2);
  std::thread first([&] { group.Meet(0, kCall, nullptr); });
  while (group.Absent() != std::vector<int>{1}) {
    std::this_thread::yield();
  }
  const auto until = std::chrono::steady_clock::now() + kLate;
  while (std::chrono::steady_clock::now() < until) {
    std::this_thread::yield();
  }
  group.Meet(1, kCall, nullptr);
  first.join();
  CHECK(group.Waited(0) >= kLate);
  CHECK(group.Waited(1).count() == 0);
}

TEST_CASE("threads that wait for one that fails are released", "[kernels][collectives]") {
  Ranks all(3);
  std::vector<float> sums[3];
  all.Run([&](int rank, Backend& backend) {
    if (rank == 1) {
      while (all.group.Absent() != std::vector<int>{1}) {
        std::this_thread::yield();
      }
      all.group.Fail("rank 1: planted");
      all.group.Fail("too late");
      return;
    }
    const std::vector<double> partial(4, 1.0);
    sums[rank].assign(4, 5.0F);
    for (int call = 0; call < 2; ++call) {  // none waits again
      backend.AllReduce({.partial = ViewOf(partial, DataType::kF64, 1),
                         .sum = ViewOf(sums[rank], DataType::kF32, 1)});
    }
  });
  CHECK(all.group.failure() == "rank 1: planted");
  CHECK(sums[0] == std::vector<float>(4, 5.0F));
  CHECK(sums[2] == std::vector<float>(4, 5.0F));
}

namespace {

constexpr std::int64_t kHidden = 64;
constexpr std::int64_t kWidth = 256;
constexpr std::int64_t kTokens = 3;
constexpr std::int64_t kExperts = 4;

constexpr ScratchLimits kLimits{.tokens_max = 8,
                                .context_max = 64,
                                .masked_context_max = 0,
                                .hidden = kWidth,
                                .heads = 1,
                                .nope = 64,
                                .value = 64,
                                .index_heads = 0,
                                .index_topk = 0,
                                .experts = kExperts,
                                .experts_per_token = 2,
                                .expert_width = kWidth,
                                .linear_width_max = kWidth,
                                .logit_rows_max = 1,
                                .vocabulary = 8,
                                .expert_sum_type = DataType::kF64};

std::vector<float> RandomValues(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    value = normal(random);
  }
  return values;
}

// Columns [first, first + count) of rows of `cols` values.
std::vector<float> Columns(const std::vector<float>& values, std::int64_t cols, std::int64_t first,
                           std::int64_t count) {
  std::vector<float> part;
  for (auto row = values.begin(); row != values.end(); row += cols) {
    part.insert(part.end(), row + first, row + first + count);
  }
  return part;
}

}  // namespace

TEST_CASE("a product in f64 is a sum that was not rounded", "[kernels][collectives]") {
  CpuBackend backend(2);
  REQUIRE(backend.ReserveScratch(kLimits).ok());
  const std::vector<float> x = RandomValues(kTokens * kWidth, 1);
  const std::vector<float> weight = RandomValues(kHidden * kWidth, 2);
  std::vector<double> y(kTokens * kHidden);
  backend.Linear({.x = ViewOf(x, DataType::kF32, kTokens),
                  .weight = ViewOf(weight, DataType::kF32, kHidden),
                  .y = ViewOf(y, DataType::kF64, kTokens)});
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (std::int64_t n = 0; n < kHidden; ++n) {
      double sum = 0.0;
      double size = 0.0;
      for (std::int64_t k = 0; k < kWidth; ++k) {
        const double product = double{x[static_cast<std::size_t>(t * kWidth + k)]} *
                               double{weight[static_cast<std::size_t>(n * kWidth + k)]};
        sum += product;
        size += std::abs(product);
      }
      // kWidth additions of double, each off by 2^-53 of a sum that is at most `size`.
      CHECK(std::abs(y[static_cast<std::size_t>(t * kHidden + n)] - sum) <=
            static_cast<double>(kWidth) * 0x1p-53 * size);
    }
  }
}

TEST_CASE("experts whose width is split leave parts of the whole sum", "[kernels][collectives]") {
  CpuBackend backend(2);
  REQUIRE(backend.ReserveScratch(kLimits).ok());
  const std::vector<float> x = RandomValues(kTokens * kHidden, 3);
  const std::vector<float> gate = RandomValues(kExperts * kWidth * kHidden, 4);
  const std::vector<float> up = RandomValues(kExperts * kWidth * kHidden, 5);
  const std::vector<float> down = RandomValues(kExperts * kHidden * kWidth, 6);
  const std::vector<std::int32_t> experts = {0, 3, 2, 1, -1, 2};
  const std::vector<float> weights = {0.5F, 1.25F, 0.75F, 2.0F, 9.0F, 0.3F};
  const std::vector<double> shared(kTokens * kHidden, 0.1);

  const auto run = [&](std::int64_t first, std::int64_t width, DataType type, void* y,
                       const void* added) {
    std::vector<float> gate_rows;
    std::vector<float> up_rows;
    for (std::int64_t e = 0; e < kExperts; ++e) {
      const std::int64_t begin = (e * kWidth + first) * kHidden;
      gate_rows.insert(gate_rows.end(), gate.begin() + begin,
                       gate.begin() + begin + width * kHidden);
      up_rows.insert(up_rows.end(), up.begin() + begin, up.begin() + begin + width * kHidden);
    }
    const std::vector<float> down_columns = Columns(down, kWidth, first, width);
    const auto stack = [&](const std::vector<float>& values, std::int64_t rows, std::int64_t cols) {
      return StackedWeight{.data = values.data(),
                           .type = DataType::kF32,
                           .scales = nullptr,
                           .experts = kExperts,
                           .rows = rows,
                           .cols = cols};
    };
    backend.RoutedExperts({.x = ViewOf(x, DataType::kF32, kTokens),
                           .gate = stack(gate_rows, width, kHidden),
                           .up = stack(up_rows, width, kHidden),
                           .down = stack(down_columns, kHidden, width),
                           .experts = {experts.data(), kTokens, 2, 2},
                           .weights = {weights.data(), kTokens, 2, 2},
                           .shared = {added, type, kTokens, kHidden, kHidden},
                           .scale_format = ScaleFormat::kPowerOfTwo,
                           .y = {y, type, kTokens, kHidden, kHidden}});
  };
  std::vector<double> whole(kTokens * kHidden);
  std::vector<double> left = shared;  // y may alias the shared expert's output
  std::vector<double> right(kTokens * kHidden);
  std::vector<float> rounded(kTokens * kHidden);
  const std::vector<float> shared_floats(kTokens * kHidden, 0.1F);
  run(0, kWidth, DataType::kF64, whole.data(), shared.data());
  run(0, 128, DataType::kF64, left.data(), left.data());
  run(128, 128, DataType::kF64, right.data(), nullptr);
  run(0, kWidth, DataType::kF32, rounded.data(), shared_floats.data());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    CAPTURE(i);
    // Sums of double of terms below 1e3: far apart from what a float32 in between would leave.
    CHECK(std::abs(left[i] + right[i] - whole[i]) < 1e-10);
    CHECK(std::abs(whole[i] - double{rounded[i]}) < 1e-6 * (1.0 + std::abs(whole[i])) * 20.0);
  }
}

}  // namespace dsa::testing::collectives_test
