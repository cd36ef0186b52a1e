// Ranks with sequences and caches of their own and the experts over all of them: every request gets
// the bits that one rank gives it, whoever else is at work, with prefix hits, preemption and
// recorded steps; what a rank could do wrong in the exchange is seen.
#include "kernels/comm/collectives.h"
#include "kernels/forwarding_backend.h"
#include "kernels/ops/routed_experts.h"
#include "tests/model/data_rank_runner.h"
#include "tests/model/rank_model.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

// On the CPU.
class DataRanks final {
 public:
  DataRanks(const std::string& folder, const RankLayout& layout, const WrapRank& wrap = {})
      : model_(folder, layout, wrap),
        runner_(model_.config, layout,
                [this](const ModelExecutorConfig& config) { return model_.MakeExecutor(config); }),
        options(runner_.options) {}

  std::vector<std::vector<SequenceOutput>> Run(const std::vector<RankWork>& work) {
    return runner_.Run(work);
  }
  DataRankRunner* operator->() { return &runner_; }
  const ThreadGroup& group() const { return model_.group; }

 private:
  RankModel model_;
  DataRankRunner runner_;

 public:
  RunOptions& options;  // before the first Run
};

// Lets the other rank wait in each Dispatch.
class LateRank final : public ForwardingBackend {
 public:
  static constexpr std::chrono::milliseconds kLate{10};

  LateRank(Backend& inner, const ThreadGroup* const& group, int& dispatches)
      : ForwardingBackend(inner), group_(group), dispatches_(dispatches) {}
  void Dispatch(const DispatchParams& params) override {
    while (group_->Absent() != std::vector<int>{1}) {
      std::this_thread::yield();
    }
    const auto until = std::chrono::steady_clock::now() + kLate;
    while (std::chrono::steady_clock::now() < until) {
      std::this_thread::yield();
    }
    ++dispatches_;
    inner_.Dispatch(params);
  }

 private:
  const ThreadGroup* const& group_;
  int& dispatches_;
};

}  // namespace

TEST_CASE("data ranks give a request the bits of one rank", "[model][ranks]") {
  const auto [architecture, type] =
      GENERATE(std::pair(Architecture::kDeepseekV32, CheckpointType::kF32),
               std::pair(Architecture::kGlmMoeDsa, CheckpointType::kFp8),
               std::pair(Architecture::kDeepseekV3, CheckpointType::kBf16));
  const std::int64_t data_ranks = GENERATE(2, 4);
  const std::string& folder = Split(architecture, type);
  const std::vector<RankWork> work = UnevenWork(data_ranks, kLongPrompt);
  DataRanks ranks(folder, {.expert_parallel = true, .data_ranks = data_ranks});
  const auto got = ranks.Run(work);
  for (std::size_t rank = 0; rank < work.size(); ++rank) {
    CAPTURE(ToString(architecture), data_ranks, rank);
    CHECK(SameBits(got[rank], RunWhole(folder, work[rank].requests)));
  }
}

TEST_CASE("data ranks of two tensor ranks each are the model on one", "[model][ranks]") {
  const std::string& folder = Split(Architecture::kDeepseekV32, CheckpointType::kF32);
  const std::vector<RankWork> work = UnevenWork(2, kLongPrompt);
  DataRanks ranks(folder, {.ranks = 2, .expert_parallel = true, .data_ranks = 2});
  const auto got = ranks.Run(work);
  for (std::size_t rank = 0; rank < work.size(); ++rank) {
    CHECK(SameModel(got[rank], RunWhole(folder, work[rank].requests)));
  }
}

TEST_CASE("data ranks repeat recorded steps, padded to the largest", "[model][ranks]") {
  const std::string& folder = Split(Architecture::kDeepseekV32, CheckpointType::kF32);
  const std::vector<RankWork> work = UnevenWork(2, kLongPrompt);
  DataRanks ranks(folder, {.expert_parallel = true, .data_ranks = 2});
  ranks.options.sequences_max = 3;
  ranks.options.row_buckets = RowBuckets(3, kTokensPerBlock);
  const auto got = ranks.Run(work);
  CHECK(ranks->runner(0).steps_recorded() > 10);
  CHECK(ranks->runner(1).steps_recorded() == ranks->runner(0).steps_recorded());
  for (std::size_t rank = 0; rank < work.size(); ++rank) {
    CHECK(SameBits(got[rank], RunWhole(folder, work[rank].requests)));
  }
}

TEST_CASE("a data rank keeps a preempted sequence and a prefix hit", "[model][ranks]") {
  const std::string& folder = Split(Architecture::kDeepseekV32, CheckpointType::kF32);
  std::vector<RankWork> work = {{.requests = {{.prompt = RankPrompt(100, 1), .max_tokens = 100},
                                              {.prompt = RankPrompt(120, 2), .max_tokens = 80},
                                              {.prompt = RankPrompt(60, 4), .max_tokens = 90}}},
                                {.requests = {{.prompt = RankPrompt(64, 5), .max_tokens = 20}}}};
  DataRanks ranks(folder, {.expert_parallel = true, .data_ranks = 2});
  ranks.options.blocks = 6;  // two sequences of 3 blocks fit, their growth does not
  const auto got = ranks.Run(work);
  CHECK(got[0][0].preemptions + got[0][1].preemptions + got[0][2].preemptions > 0);
  CHECK(SameBits(got[0], RunWhole(folder, work[0].requests)));
  std::vector<RankWork> again = {{.requests = {}}, {.requests = {work[1].requests[0]}}};
  again[1].requests[0].prompt.push_back(1);
  const auto whole = RunWhole(folder, again[1].requests);
  again[1].requests[0].prompt_logits = PromptLogits::kNone;
  const auto hit = ranks.Run(again);
  CHECK(hit[1][0].cache_hit_tokens == 64);
  CHECK(hit[1][0].ids == whole[0].ids);
}

namespace {

enum class ExchangeRankFault {
  kNone,
  kExpertNowhere,  // an expert is on no rank
  kOtherOrder,     // a rank adds up what comes back from the last to the first
  kStaleRouting,   // a rank sends its rows where those of the layer before went
  kSharedTwice,    // a rank adds the shared expert twice
  kPaddingRoutes,  // rows of padding go to experts
};

// What the ops of rank 1 do wrong; counts the pairs that come to its experts.
class FaultyExchange final : public ForwardingBackend {
 public:
  FaultyExchange(Backend& inner, ExchangeRankFault fault, std::atomic<std::int64_t>& pairs)
      : ForwardingBackend(inner), fault_(fault), pairs_(pairs) {}

  void RoutedExperts(const RoutedExpertsParams& params) override {
    RoutedExpertsParams changed = params;
    for (std::int64_t row = 0; row < params.experts.rows; ++row) {
      for (std::int64_t k = 0; k < params.experts.cols; ++k) {
        pairs_ += params.experts.Row(row)[k] >= 0 ? 1 : 0;
      }
    }
    if (fault_ == ExchangeRankFault::kExpertNowhere) {
      for (StackedWeight* const stack : {&changed.gate, &changed.up, &changed.down}) {
        --stack->experts;  // the last one
      }
    }
    inner_.RoutedExperts(changed);
  }
  void Dispatch(const DispatchParams& params) override {
    DispatchParams changed = params;
    std::vector<std::int32_t> routing(
        params.experts.data, params.experts.data + params.experts.rows * params.experts.cols);
    if (fault_ == ExchangeRankFault::kPaddingRoutes) {
      // No gate writes ids of padding: what memory holds there need not be those of experts.
      std::fill(routing.begin() + params.live_rows.data[0] * params.experts.cols, routing.end(), 0);
      changed.experts.data = routing.data();
      changed.live_rows = {};
    }
    if (fault_ == ExchangeRankFault::kStaleRouting && before_.size() == routing.size()) {
      std::swap(before_, routing);
      changed.experts.data = routing.data();
    } else {
      before_ = routing;
    }
    inner_.Dispatch(changed);
  }
  void Combine(const CombineParams& params) override {
    if (fault_ == ExchangeRankFault::kSharedTwice) {
      auto* const shared = static_cast<float*>(const_cast<void*>(params.shared.data));
      for (std::int64_t i = 0; i < params.shared.rows * params.shared.cols; ++i) {
        shared[i] *= 2.0F;
      }
    }
    CombineParams changed = params;
    std::vector<float> weights(params.weights.data,
                               params.weights.data + params.weights.rows * params.weights.cols);
    if (fault_ == ExchangeRankFault::kOtherOrder) {
      for (std::int64_t row = 0; row < params.weights.rows; ++row) {
        std::reverse(weights.begin() + row * params.weights.cols,
                     weights.begin() + (row + 1) * params.weights.cols);
      }
      changed.weights.data = weights.data();
    }
    inner_.Combine(changed);
  }

 private:
  const ExchangeRankFault fault_;
  std::atomic<std::int64_t>& pairs_;
  std::vector<std::int32_t> before_;
};

struct ExchangeRun {
  bool same_bits = true;
  std::int64_t pairs = 0;      // that came to experts
  std::int64_t pairs_due = 0;  // of rows that are not padding
  std::int64_t pairs_counted = 0;
};

ExchangeRun RunFaulty(ExchangeRankFault fault) {
  const std::string& folder = Split(Architecture::kDeepseekV32, CheckpointType::kF32);
  const std::vector<RankWork> work = {
      {.requests = {{.prompt = RankPrompt(90, 3), .max_tokens = 4}}},
      {.requests = {{.prompt = RankPrompt(40, 4), .max_tokens = 6}}}};
  std::atomic<std::int64_t> pairs = 0;
  DataRanks ranks(folder, {.expert_parallel = true, .data_ranks = 2},
                  [&](Backend& inner, int rank) {
                    return std::make_unique<FaultyExchange>(
                        inner, rank == 1 ? fault : ExchangeRankFault::kNone, pairs);
                  });
  const auto got = ranks.Run(work);
  ExchangeRun run;
  for (std::size_t rank = 0; rank < work.size(); ++rank) {
    run.same_bits = run.same_bits && SameBits(got[rank], RunWhole(folder, work[rank].requests));
  }
  constexpr std::int64_t kMoeLayers = 2;
  constexpr std::int64_t kPerToken = 2;
  run.pairs = pairs;
  run.pairs_counted = ranks->pairs_counted();
  run.pairs_due = ranks->rows_of_ranks() * kMoeLayers * kPerToken;
  return run;
}

}  // namespace

TEST_CASE("faults of the exchange between data ranks are seen", "[model][ranks]") {
  const ExchangeRun right = RunFaulty(ExchangeRankFault::kNone);
  CHECK(right.same_bits);
  CHECK(right.pairs == right.pairs_due);
  CHECK(right.pairs_counted == right.pairs_due);
  CHECK_FALSE(RunFaulty(ExchangeRankFault::kExpertNowhere).same_bits);
  CHECK_FALSE(RunFaulty(ExchangeRankFault::kOtherOrder).same_bits);
  CHECK_FALSE(RunFaulty(ExchangeRankFault::kStaleRouting).same_bits);
  CHECK_FALSE(RunFaulty(ExchangeRankFault::kSharedTwice).same_bits);
  CHECK(RunFaulty(ExchangeRankFault::kPaddingRoutes).pairs > right.pairs_due);
}

TEST_CASE("a data rank's own time is without waiting for another", "[model][ranks]") {
  const ThreadGroup* group = nullptr;
  int dispatches = 0;
  DataRanks ranks(Split(Architecture::kDeepseekV32, CheckpointType::kF32),
                  {.expert_parallel = true, .data_ranks = 2},
                  [&](Backend& inner, int rank) -> std::unique_ptr<Backend> {
                    if (rank == 0) {
                      return std::make_unique<ForwardingBackend>(inner);
                    }
                    return std::make_unique<LateRank>(inner, group, dispatches);
                  });
  group = &ranks.group();
  const RankWork one = {.requests = {{.prompt = {1}, .max_tokens = 1}}};
  ranks.Run({one, one});
  REQUIRE(dispatches > 0);
  CHECK(ranks->Own(0) + dispatches * LateRank::kLate <= ranks->elapsed());
  CHECK(ranks->Own(1) >= dispatches * LateRank::kLate);
}

}  // namespace dsa::testing
