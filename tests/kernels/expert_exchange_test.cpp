// Dispatch, the experts of each rank, Combine: every row gets the bits that one rank with all
// experts gives it, whoever has the experts, with padding, and in every round.
#include "common/view_parts.h"
#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ops/routed_experts.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing::expert_exchange_test {
namespace {

constexpr std::int64_t kRowsOfRank = 5;
constexpr std::int64_t kExchangeHidden = 96;
constexpr std::int64_t kInner = 32;
constexpr std::int64_t kExpertCount = 7;  // of no number of ranks the same on each
constexpr std::int64_t kChosen = 3;       // fewer could be added in any order
constexpr int kRanksMax = 3;
constexpr int kRounds = 3;

constexpr ScratchLimits kExchangeLimits{.tokens_max = kRanksMax * kRowsOfRank,
                                        .context_max = 64,
                                        .masked_context_max = 0,
                                        .hidden = kExchangeHidden,
                                        .heads = 1,
                                        .nope = 64,
                                        .value = 64,
                                        .index_heads = 0,
                                        .index_topk = 0,
                                        .experts = kExpertCount,
                                        .experts_per_token = kChosen,
                                        .expert_width = kInner,
                                        .linear_width_max = kExchangeHidden,
                                        .logit_rows_max = 1,
                                        .vocabulary = 8};

// Values of an activation type, or of fp8 weights.
struct Values {
  Values(std::int64_t count, DataType of, unsigned seed)
      : bytes(static_cast<std::size_t>(count * SizeOf(of))), type(of) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < count; ++i) {
      const float value = normal(random);
      std::byte* const target = bytes.data() + i * SizeOf(type);
      if (type == DataType::kF32) {
        std::memcpy(target, &value, sizeof(value));
      } else if (type == DataType::kBf16) {
        const Bf16 narrow = ToBf16(value);
        std::memcpy(target, &narrow, sizeof(narrow));
      } else {
        *target = std::byte{ToFp8E4m3(value).bits};
      }
    }
  }
  AnyMatrix View(std::int64_t rows) {
    return {bytes.data(), type, rows, kExchangeHidden, kExchangeHidden};
  }
  const std::byte* At(std::int64_t index) const { return bytes.data() + index * SizeOf(type); }

  std::vector<std::byte> bytes;
  DataType type;
};

struct ExchangeModel {
  explicit ExchangeModel(DataType activations, DataType weights)
      : type(activations),
        gate(kExpertCount * kInner * kExchangeHidden, weights, 1),
        up(kExpertCount * kInner * kExchangeHidden, weights, 2),
        down(kExpertCount * kInner * kExchangeHidden, weights, 3),
        scales(kExpertCount, 0.25F) {}

  StackedWeight Stack(const Values& values, const ExpertRange& range, std::int64_t rows,
                      std::int64_t cols) const {
    return {.data = values.At(range.first * rows * cols),
            .type = values.type,
            .scales = values.type == DataType::kFp8E4m3 ? scales.data() + range.first : nullptr,
            .experts = range.count,
            .rows = rows,
            .cols = cols};
  }
  RoutedExpertsParams Params(const ExpertRange& range) const {
    return {.x = {},
            .gate = Stack(gate, range, kInner, kExchangeHidden),
            .up = Stack(up, range, kInner, kExchangeHidden),
            .down = Stack(down, range, kExchangeHidden, kInner),
            .first_expert = range.first,
            .experts = {},
            .weights = {},
            .shared = {nullptr, type, 0, 0, 0},
            .scale_format = ScaleFormat::kPowerOfTwo,
            .y = {}};
  }

  DataType type;
  Values gate;
  Values up;
  Values down;
  std::vector<float> scales;  // a block each: neither extent exceeds 128
};

// The rows of a rank in a round.
struct RankRows {
  RankRows(DataType type, int rank, int round, bool to_one)
      : x(kRowsOfRank * kExchangeHidden, type, static_cast<unsigned>(100 * rank + round)),
        shared(kRowsOfRank * kExchangeHidden, type, static_cast<unsigned>(100 * rank + round + 50)),
        y(kRowsOfRank * kExchangeHidden, type, 9) {
    std::mt19937 random(static_cast<unsigned>(rank * 7 + round));
    std::vector<std::int32_t> ids(kExpertCount);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<std::int32_t>(i);
    }
    for (std::int64_t t = 0; t < kRowsOfRank; ++t) {
      std::shuffle(ids.begin(), ids.end(), random);
      const bool is_padding = t >= kRowsOfRank - rank;  // ranks have 5, 4 and 3 rows
      for (std::int64_t k = 0; k < kChosen; ++k) {
        const auto chosen =
            to_one ? static_cast<std::int32_t>(k) : ids[static_cast<std::size_t>(k)];
        experts.push_back(is_padding ? -1 : chosen);
        weights.push_back(0.1F + static_cast<float>(random() % 1000) / 700.0F);
      }
    }
  }
  Matrix<const std::int32_t> Experts() const {
    return {experts.data(), kRowsOfRank, kChosen, kChosen};
  }
  Matrix<const float> Weights() const { return {weights.data(), kRowsOfRank, kChosen, kChosen}; }

  Values x;
  Values shared;
  Values y;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
};

enum class ExchangeFault { kNone, kOtherOrder, kStaleRouting };

struct ExchangeCase {
  DataType activations;
  DataType weights;
  int ranks;
  bool to_one = false;  // every row to the first experts
  ExchangeFault fault = ExchangeFault::kNone;
};

std::vector<std::byte> OnOneRank(const ExchangeModel& model, RankRows rows) {
  CpuBackend backend(1);
  REQUIRE(backend.ReserveScratch(kExchangeLimits).ok());
  RoutedExpertsParams params = model.Params({.first = 0, .count = kExpertCount});
  params.x = rows.x.View(kRowsOfRank);
  params.experts = rows.Experts();
  params.weights = rows.Weights();
  params.shared = rows.shared.View(kRowsOfRank);
  params.y = rows.y.View(kRowsOfRank);
  backend.RoutedExperts(params);
  return rows.y.bytes;
}

// The results of a rank, round by round.
std::vector<std::vector<std::byte>> RunRank(const ExchangeModel& model, const ExchangeCase& test,
                                            int rank, Backend& backend) {
  const std::int64_t first = kExpertCount * rank / test.ranks;
  const ExpertRange here = {.first = first,
                            .count = kExpertCount * (rank + 1) / test.ranks - first};
  const std::int64_t rows_of_all = test.ranks * kRowsOfRank;
  Values received(rows_of_all * kExchangeHidden, test.activations, 4);
  Values contributions(rows_of_all * kChosen * kExchangeHidden, test.activations, 5);
  std::vector<std::int32_t> row_experts(static_cast<std::size_t>(rows_of_all * kChosen), 99);
  const std::vector<float> no_weights(row_experts.size());
  std::vector<std::int32_t> routing_before(static_cast<std::size_t>(kRowsOfRank * kChosen), -1);
  std::vector<std::vector<std::byte>> results;
  for (int round = 0; round < kRounds; ++round) {
    RankRows rows(test.activations, rank, round, test.to_one);
    std::vector<std::int32_t> routing = rows.experts;
    if (test.fault == ExchangeFault::kOtherOrder) {
      for (std::int64_t t = 0; t < kRowsOfRank; ++t) {
        std::reverse(rows.experts.begin() + t * kChosen, rows.experts.begin() + (t + 1) * kChosen);
        std::reverse(rows.weights.begin() + t * kChosen, rows.weights.begin() + (t + 1) * kChosen);
      }
      routing = rows.experts;
    }
    if (test.fault == ExchangeFault::kStaleRouting && rank == 0) {
      std::swap(routing, routing_before);
      routing_before = rows.experts;
    }
    const Matrix<std::int32_t> here_experts = {row_experts.data(), rows_of_all, kChosen, kChosen};
    backend.Dispatch({.x = rows.x.View(kRowsOfRank),
                      .experts = rows.Experts(),
                      .here = here,
                      .rows = received.View(rows_of_all),
                      .row_experts = here_experts});
    RoutedExpertsParams params = model.Params(here);
    params.x = received.View(rows_of_all);
    params.experts = {row_experts.data(), rows_of_all, kChosen, kChosen};
    params.weights = {no_weights.data(), rows_of_all, kChosen, kChosen};
    params.y = received.View(rows_of_all);  // not written
    params.contributions = contributions.View(rows_of_all * kChosen);
    if (here.count > 0) {
      backend.RoutedExperts(params);
    }
    backend.Combine({.contributions = contributions.View(rows_of_all * kChosen),
                     .row_experts = AsConst(here_experts),
                     .experts = {routing.data(), kRowsOfRank, kChosen, kChosen},
                     .weights = rows.Weights(),
                     .here = here,
                     .shared = rows.shared.View(kRowsOfRank),
                     .y = rows.y.View(kRowsOfRank)});
    results.push_back(rows.y.bytes);
  }
  return results;
}

// Whether every row of every rank has the bits that one rank gives it.
bool ExchangeIsRight(const ExchangeCase& test) {
  const ExchangeModel model(test.activations, test.weights);
  ThreadGroup group(test.ranks);
  std::vector<std::vector<std::vector<std::byte>>> results(static_cast<std::size_t>(test.ranks));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < test.ranks; ++rank) {
    threads.emplace_back([&, rank] {
      CpuBackend backend(2, CpuSeat{.group = &group, .rank = rank});
      if (backend.ReserveScratch(kExchangeLimits).ok()) {
        results[static_cast<std::size_t>(rank)] = RunRank(model, test, rank, backend);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  REQUIRE(group.failure().empty());
  for (int rank = 0; rank < test.ranks; ++rank) {
    for (int round = 0; round < kRounds; ++round) {
      const RankRows rows(test.activations, rank, round, test.to_one);
      if (results[static_cast<std::size_t>(rank)].at(static_cast<std::size_t>(round)) !=
          OnOneRank(model, rows)) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

TEST_CASE("threads that exchange rows of experts give what one rank gives",
          "[kernels][collectives]") {
  const int ranks = GENERATE(1, 2, kRanksMax);
  const bool to_one = GENERATE(false, true);
  CAPTURE(ranks, to_one);
  CHECK(ExchangeIsRight({DataType::kF32, DataType::kF32, ranks, to_one}));
  CHECK(ExchangeIsRight({DataType::kBf16, DataType::kBf16, ranks, to_one}));
  CHECK(ExchangeIsRight({DataType::kBf16, DataType::kFp8E4m3, ranks, to_one}));
}

TEST_CASE("threads that add experts in another order or by a stale routing are seen",
          "[kernels][collectives]") {
  CHECK_FALSE(
      ExchangeIsRight({DataType::kF32, DataType::kF32, 2, false, ExchangeFault::kOtherOrder}));
  CHECK_FALSE(
      ExchangeIsRight({DataType::kF32, DataType::kF32, 2, false, ExchangeFault::kStaleRouting}));
}

}  // namespace dsa::testing::expert_exchange_test
