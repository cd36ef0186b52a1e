// A model on ranks that are threads: its logits are those of one rank but for the order of sums,
// its tokens the same, with prefix hits, preemption and recorded steps; what a rank could do wrong
// is seen.
#include "kernels/comm/collectives.h"
#include "kernels/forwarding_backend.h"
#include "kernels/fused/add_norm.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/ops/routed_experts.h"
#include "tests/model/rank_model.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {

TEST_CASE("a model on rank threads is the model on one", "[model][ranks]") {
  const Architecture architecture =
      GENERATE(Architecture::kDeepseekV32, Architecture::kGlmMoeDsa, Architecture::kDeepseekV3);
  const std::string& folder = Split(architecture, CheckpointType::kF32);
  const std::vector<SequenceOutput> whole = RunWhole(folder, RankRequests(kLongPrompt));
  std::vector<RankLayout> layouts = {{.ranks = 2}, {.ranks = 4, .expert_parallel = true}};
  if (!kSanitized) {
    layouts.push_back({.ranks = 4});
    layouts.push_back({.ranks = 2, .expert_parallel = true});
  }
  for (const RankLayout& layout : layouts) {
    RankModel model(folder, layout);
    const std::vector<SequenceOutput> got = RunOn(model, RankRequests(kLongPrompt));
    CAPTURE(ToString(architecture), layout.ranks, layout.expert_parallel,
            Compare(got, whole, 0.0F).logits);
    CHECK(SameModel(got, whole));
    CHECK(got[0].logits.size() == kLongPrompt + 10 - 1);
  }
}

// A rank rounds its part of nothing, so that less is rounded than on one rank: of an expert's
// output and of the shared one's only the sum is.
TEST_CASE("a narrow model on rank threads is the model on one within its roundings",
          "[model][ranks]") {
  const auto [architecture, type] =
      GENERATE(std::pair(Architecture::kDeepseekV32, CheckpointType::kFp8),
               std::pair(Architecture::kGlmMoeDsa, CheckpointType::kFp8),
               std::pair(Architecture::kDeepseekV3, CheckpointType::kBf16));
  const std::string& folder = Split(architecture, type);
  const std::vector<SequenceOutput> whole = RunWhole(folder, RankRequests(kLongPrompt));
  RankModel model(folder, {.ranks = 2});
  const std::vector<SequenceOutput> got = RunOn(model, RankRequests(kLongPrompt));
  const RankDifference difference = Compare(got, whole, 0.1F);
  CAPTURE(ToString(architecture), difference.logits, difference.equal_values);
  CHECK(difference.logits < 3e-2);  // as the goldens of narrow models
  CHECK(difference.clear_tokens);
}

TEST_CASE("rank threads keep a preempted sequence and a prefix hit", "[model][ranks]") {
  const std::string& folder = Split(Architecture::kDeepseekV32, CheckpointType::kF32);
  std::vector<SequenceRequest> requests = {{.prompt = RankPrompt(100, 1), .max_tokens = 100},
                                           {.prompt = RankPrompt(120, 2), .max_tokens = 80},
                                           {.prompt = RankPrompt(60, 4), .max_tokens = 90}};
  const std::vector<SequenceOutput> whole = RunWhole(folder, requests);
  RankModel model(folder, {.ranks = 2});
  RunOptions options = OptionsOf(model.config);
  options.blocks = 6;  // two sequences of 3 blocks fit, their growth does not
  SequenceRunner runner(
      [&](const ModelExecutorConfig& config) { return model.MakeExecutor(config); }, model.config,
      options);
  const std::vector<SequenceOutput> got = runner.Run(requests);
  CHECK(got[0].preemptions + got[1].preemptions + got[2].preemptions > 0);
  CHECK(SameModel(got, whole));
  options.blocks = 64;
  RankModel other(folder, {.ranks = 2});
  SequenceRunner roomy(
      [&](const ModelExecutorConfig& config) { return other.MakeExecutor(config); }, other.config,
      options);
  roomy.Run(requests);
  requests.resize(1);
  requests[0].prompt_logits = PromptLogits::kNone;
  const std::vector<SequenceOutput> hit = roomy.Run(requests);
  CHECK(hit[0].cache_hit_tokens > 0);
  CHECK(SameModel(hit, {whole[0]}));
}

TEST_CASE("rank threads repeat recorded steps with their collectives", "[model][ranks]") {
  const std::string& folder = Split(Architecture::kDeepseekV32, CheckpointType::kF32);
  RankModel eager(folder, {.ranks = 4});
  const std::vector<SequenceOutput> queued = RunOn(eager, RankRequests(kLongPrompt));
  RankModel model(folder, {.ranks = 4});
  RunOptions options = OptionsOf(model.config);
  options.sequences_max = 3;
  options.row_buckets = RowBuckets(3, kTokensPerBlock);
  SequenceRunner runner(
      [&](const ModelExecutorConfig& config) { return model.MakeExecutor(config); }, model.config,
      options);
  const std::vector<SequenceOutput> repeated = runner.Run(RankRequests(kLongPrompt));
  CHECK(runner.steps_recorded() > 10);
  for (std::size_t i = 0; i < queued.size(); ++i) {
    CHECK(repeated[i].ids == queued[i].ids);
    CHECK(repeated[i].logits == queued[i].logits);
  }
}

namespace {

enum class RankFault {
  kNone,
  kHeadTwice,         // a rank computes the heads of another one
  kResidualTwice,     // every rank adds the residual
  kSharedTwice,       // a rank adds its part of the shared expert twice
  kStalePart,         // a rank sends the part of the step before
  kHeadRows,          // ranks give each other's rows of the vocabulary
  kExpertNowhere,     // an expert is on no rank
  kPartRoundedToBf16  // a part is rounded before it is added
};

// What the ops of rank 1 do wrong.
class FaultyRank final : public ForwardingBackend {
 public:
  FaultyRank(Backend& inner, RankFault fault) : ForwardingBackend(inner), fault_(fault) {}

  void AddNorm(const AddNormParams& params) override {
    if (fault_ == RankFault::kResidualTwice && params.partial.data != nullptr &&
        params.residual.data != nullptr) {
      auto* const partial = static_cast<double*>(const_cast<void*>(params.partial.data));
      const auto* const residual = static_cast<const float*>(params.residual.data);
      for (std::int64_t i = 0; i < params.residual.rows * params.residual.cols; ++i) {
        partial[i] += double{residual[i]};
      }
    }
    ForwardingBackend::AddNorm(params);
  }
  void GatedMlp(const GatedMlpParams& params) override {
    ForwardingBackend::GatedMlp(params);
    if (fault_ == RankFault::kSharedTwice && params.gate.weight.rows == 128) {
      auto* const y = static_cast<double*>(params.y.data);
      for (std::int64_t i = 0; i < params.y.rows * params.y.cols; ++i) {
        y[i] *= 2.0;
      }
    }
  }
  void RoutedExperts(const RoutedExpertsParams& params) override {
    RoutedExpertsParams changed = params;
    if (fault_ == RankFault::kExpertNowhere) {
      for (StackedWeight* const stack : {&changed.gate, &changed.up, &changed.down}) {
        --stack->experts;  // the last one
      }
    }
    inner_.RoutedExperts(changed);
  }
  void AllReduce(const AllReduceParams& params) override {
    AllReduceParams changed = params;
    const auto* const partial = static_cast<const double*>(params.partial.data);
    std::vector<double> values(partial, partial + params.partial.rows * params.partial.cols);
    if (fault_ == RankFault::kPartRoundedToBf16) {
      for (double& value : values) {
        value = double{ToFloat(ToBf16(static_cast<float>(value)))};
      }
      changed.partial.data = values.data();
    }
    if (fault_ == RankFault::kStalePart && before_.size() == values.size()) {
      std::swap(before_, values);
      changed.partial.data = values.data();
    } else {
      before_ = values;
    }
    inner_.AllReduce(changed);
  }

 private:
  const RankFault fault_;
  std::vector<double> before_;
};

bool IsSeen(RankFault fault, const std::vector<SequenceRequest>& requests,
            const std::vector<SequenceOutput>& whole) {
  const std::string& folder = Split(Architecture::kDeepseekV32, CheckpointType::kF32);
  const RankLayout layout = {.ranks = 2, .expert_parallel = fault == RankFault::kExpertNowhere};
  RankModel model(folder, layout, [&](Backend& inner, int rank) {
    return std::make_unique<FaultyRank>(inner, rank == 1 ? fault : RankFault::kNone);
  });
  ModelWeights& first = model.weights[0].weights;
  ModelWeights& second = model.weights[1].weights;
  if (fault == RankFault::kHeadTwice) {
    for (std::size_t layer = 0; layer < first.layers.size(); ++layer) {
      AttentionWeights& twice = second.layers[layer].attention;
      const AttentionWeights& once = first.layers[layer].attention;
      twice.q_b = once.q_b;
      twice.w_uk = once.w_uk;
      twice.w_uv = once.w_uv;
      twice.o = once.o;
    }
  }
  if (fault == RankFault::kHeadRows) {
    std::swap(first.head, second.head);
  }
  return !SameModel(RunOn(model, requests), whole);
}

}  // namespace

TEST_CASE("faults of rank threads are seen", "[model][ranks]") {
  const std::vector<SequenceRequest> requests = {{.prompt = RankPrompt(130, 3), .max_tokens = 4}};
  const std::vector<SequenceOutput> whole =
      RunWhole(Split(Architecture::kDeepseekV32, CheckpointType::kF32), requests);
  CHECK_FALSE(IsSeen(RankFault::kNone, requests, whole));
  CHECK(IsSeen(RankFault::kHeadTwice, requests, whole));
  CHECK(IsSeen(RankFault::kResidualTwice, requests, whole));
  CHECK(IsSeen(RankFault::kSharedTwice, requests, whole));
  CHECK(IsSeen(RankFault::kStalePart, requests, whole));
  CHECK(IsSeen(RankFault::kHeadRows, requests, whole));
  CHECK(IsSeen(RankFault::kExpertNowhere, requests, whole));
  CHECK(IsSeen(RankFault::kPartRoundedToBf16, requests, whole));
}

namespace {

// Counts what a rank allocates and what is copied to it.
class CountedRank final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  Result<DeviceBuffer> Allocate(std::size_t bytes) override {
    allocated += static_cast<std::int64_t>(bytes);
    return inner_.Allocate(bytes);
  }
  void Upload(void* target, const HostBuffer& source, std::size_t offset,
              std::size_t bytes) override {
    uploaded += static_cast<std::int64_t>(bytes);
    inner_.Upload(target, source, offset, bytes);
  }

  std::int64_t allocated = 0;
  std::int64_t uploaded = 0;
};

class ReadBytes final : public LoadProgress {
 public:
  void OnBytes(std::int64_t done, std::int64_t total) override {
    bytes = done;
    complete = done == total;
  }
  std::int64_t bytes = 0;
  bool complete = false;
};

}  // namespace

TEST_CASE("a checkpoint is read once for all ranks, and none gets more than it holds",
          "[model][ranks]") {
  const CheckpointType type = GENERATE(CheckpointType::kF32, CheckpointType::kFp8);
  const Checkpoint checkpoint = Checkpoint::Open(Split(Architecture::kDeepseekV32, type)).value();
  CpuBackend cpu(1);
  std::int64_t read_by_one = 0;
  std::int64_t held_by_one = 0;
  for (const RankLayout layout :
       {RankLayout{}, RankLayout{.ranks = 2}, RankLayout{.ranks = 2, .expert_parallel = true},
        RankLayout{.ranks = 2, .expert_parallel = true, .data_ranks = 2}}) {
    std::vector<std::unique_ptr<CountedRank>> counted;
    std::vector<Backend*> backends;
    for (std::int64_t rank = 0; rank < layout.all_ranks(); ++rank) {
      counted.push_back(std::make_unique<CountedRank>(cpu));
      backends.push_back(counted.back().get());
    }
    ReadBytes read;
    const auto loaded = LoadRankWeights(checkpoint, layout, backends, read);
    REQUIRE(loaded.ok());
    CHECK(read.complete);
    std::int64_t held = 0;
    for (std::int64_t rank = 0; rank < layout.all_ranks(); ++rank) {
      const CountedRank& backend = *counted[static_cast<std::size_t>(rank)];
      CHECK(
          backend.allocated ==
          WeightBytes(checkpoint, ShapeOf(checkpoint.config(), {.rank = rank, .layout = layout})));
      CHECK(backend.uploaded <= backend.allocated);
      held += backend.uploaded;
    }
    if (layout.all_ranks() == 1) {
      read_by_one = read.bytes;
      held_by_one = held;
    }
    CHECK(read.bytes == read_by_one);
    CHECK(held >= held_by_one);
    CHECK(held < 2 * layout.data_ranks * held_by_one);
  }
}

}  // namespace dsa::testing
