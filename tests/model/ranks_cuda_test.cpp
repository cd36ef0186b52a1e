// A model on ranks that are GPUs: its logits are those of one GPU and of the CPU but for the order
// of sums, its tokens the same, recorded steps included; equal runs give equal bits.  Takes two
// GPUs: on one, a rank that loads a library's kernel would wait for the other one's.
#include "kernels/comm/thread_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "model/model_slice.h"
#include "model/random_weights.h"
#include "model/weight_loader.h"
#include "server/engine/rank_group.h"
#include "tests/model/checkpoint_files.h"
#include "tests/model/rank_difference.h"
#include "tests/model/rank_requests.h"
#include "tests/model/sequence_runner.h"
#include "tests/temporary_folder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::testing {
namespace {

constexpr int kSkipped = 77;  // CTest's skip code for this binary

int Devices() {
  static const int devices = [] {
    int count = 0;
    while (CudaBackend::Make(count).ok()) {
      ++count;
    }
    return count;
  }();
  if (devices < 2) {
    fmt::print(stderr, "skipped: {} CUDA devices\n", devices);
    std::exit(kSkipped);
  }
  return devices;
}

// The same with twice the hidden values and query latents.
RandomCheckpointOptions OptionsFor(Architecture architecture, CheckpointType type) {
  RandomCheckpointOptions options = SplitOptions(architecture, type);
  options.hidden = 256;
  options.q_latent *= 2;
  return options;
}

RunOptions StepsOf(const ModelConfig& config) {
  RunOptions options;
  options.kv_format = config.default_kv_format();
  options.sequences_max = 3;
  options.row_buckets = RowBuckets(3, kTokensPerBlock);
  options.record_at_start = true;
  return options;
}

constexpr std::int64_t kLongPrompt = 256;  // four times top-k

std::vector<SequenceOutput> RunOne(const Checkpoint& checkpoint, Backend& backend) {
  NoProgress progress;
  const DeviceWeights weights = LoadWeights(checkpoint, backend, progress).value();
  SequenceRunner runner(backend, {.config = checkpoint.config(), .weights = weights.weights},
                        StepsOf(checkpoint.config()));
  return runner.Run(RankRequests(kLongPrompt));
}

// Ranks on a GPU each, as far as there are so many.
struct GpuGroup {
  explicit GpuGroup(std::int64_t ranks) : group(static_cast<int>(ranks)) {
    std::vector<CudaBackend*> joined;
    for (int rank = 0; rank < static_cast<int>(ranks); ++rank) {
      backends.push_back(CudaBackend::Make(rank).value());
      joined.push_back(backends.back().get());
      used.push_back(backends.back().get());
    }
    const Status status = CudaBackend::JoinPeers(joined, group);
    REQUIRE(status.ok());
  }

  // An executor of all, or of the one.
  std::unique_ptr<StepExecutor> Make(const ModelConfig& model,
                                     const std::vector<DeviceWeights>& weights,
                                     const ModelExecutorConfig& config) {
    if (used.size() == 1) {
      return ModelExecutor::Create(*used.front(),
                                   {.config = model, .weights = weights.front().weights}, config)
          .value();
    }
    std::vector<RankGroup::Rank> ranks;
    for (std::size_t rank = 0; rank < used.size(); ++rank) {
      ranks.push_back({.backend = *used[rank], .weights = weights[rank].weights});
    }
    return std::move(RankGroup::Create(group, ranks, model, config)).value();
  }

  ThreadGroup group;
  std::vector<std::unique_ptr<CudaBackend>> backends;
  std::vector<Backend*> used;
};

std::vector<SequenceOutput> RunRanks(const Checkpoint& checkpoint, const RankLayout& layout) {
  GpuGroup gpus(layout.ranks);
  NoProgress progress;
  const std::vector<DeviceWeights> weights =
      LoadRankWeights(checkpoint, layout, gpus.used, progress).value();
  SequenceRunner runner(
      [&](const ModelExecutorConfig& base) {
        ModelExecutorConfig config = base;
        config.place.layout = layout;
        return gpus.Make(checkpoint.config(), weights, config);
      },
      checkpoint.config(), StepsOf(checkpoint.config()));
  std::vector<SequenceOutput> outputs = runner.Run(RankRequests(kLongPrompt));
  CHECK(runner.steps_recorded() > 5);
  return outputs;
}

struct Bound {
  double logits;
  float margin;
};

// float32: sums of some hundred terms in other orders.  Narrow: as the goldens of narrow models.
Bound BoundOf(CheckpointType type) {
  return type == CheckpointType::kF32 ? Bound{.logits = 1e-5, .margin = 1e-3F}
                                      : Bound{.logits = 3e-2, .margin = 0.1F};
}

}  // namespace

TEST_CASE("a model on two GPUs is the model on one", "[ranks]") {
  const auto architecture =
      GENERATE(Architecture::kDeepseekV32, Architecture::kGlmMoeDsa, Architecture::kDeepseekV3);
  const auto type = GENERATE(CheckpointType::kF32, CheckpointType::kBf16, CheckpointType::kFp8);
  const auto expert_parallel = GENERATE(false, true);
  const RankLayout layout = {.ranks = 2, .expert_parallel = expert_parallel};
  const TemporaryFolder folder;
  MustWrite(OptionsFor(architecture, type), folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  CpuBackend cpu(2);
  const std::unique_ptr<CudaBackend> cuda = CudaBackend::Make(Devices() - 1).value();
  const std::vector<SequenceOutput> on_cpu = RunOne(checkpoint, cpu);
  const std::vector<SequenceOutput> on_one = RunOne(checkpoint, *cuda);
  const std::vector<SequenceOutput> on_two = RunRanks(checkpoint, layout);
  const Bound bound = BoundOf(type);
  const ReplyDifference from_one = CompareReplies(on_two, on_one, bound.margin);
  const ReplyDifference from_cpu = CompareReplies(on_two, on_cpu, bound.margin);
  const ReplyDifference one_from_cpu = CompareReplies(on_one, on_cpu, bound.margin);
  fmt::print(
      "{} type {}, whole experts {}: two GPUs from one {:.2e}, from the CPU {:.2e}; one GPU from "
      "the CPU {:.2e}; rows of other inputs {}, {}, {}\n",
      ToString(architecture), static_cast<int>(type), expert_parallel, from_one.logits,
      from_cpu.logits, one_from_cpu.logits, from_one.rows_apart, from_cpu.rows_apart,
      one_from_cpu.rows_apart);
  for (const ReplyDifference& difference : {from_one, from_cpu, one_from_cpu}) {
    CHECK(difference.logits < bound.logits);
    CHECK(difference.clear_tokens);
  }
  CHECK_FALSE(from_one.faulty);
  CHECK(on_two[0].logits.size() == 256 + 10 - 1);
}

TEST_CASE("equal runs on two GPUs give equal bits", "[ranks]") {
  const auto type = GENERATE(CheckpointType::kF32, CheckpointType::kFp8);
  const TemporaryFolder folder;
  MustWrite(OptionsFor(Architecture::kDeepseekV32, type), folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  const std::vector<SequenceOutput> first = RunRanks(checkpoint, {.ranks = 2});
  const std::vector<SequenceOutput> second = RunRanks(checkpoint, {.ranks = 2});
  for (std::size_t i = 0; i < first.size(); ++i) {
    CHECK(first[i].ids == second[i].ids);
    CHECK(first[i].logits == second[i].logits);
  }
}

namespace {

constexpr std::int64_t kContext = 8192;
constexpr std::int64_t kChunk = 4096;
constexpr std::int64_t kSequences = 64;

// The steps of a run, in ms: from one batch to the next, so with all that the host does.
class StepTimes final {
 public:
  explicit StepTimes(SequenceRunner& runner) {
    runner.before_step = [this](const ForwardBatch& batch) { Next(batch); };
  }

  // Median of steps of so many rows, in which a row sees at least `keys`.
  double Median(std::int64_t rows, std::int64_t keys) const {
    std::vector<double> chosen;
    for (const Step& step : steps_) {
      if (step.rows == rows && step.keys >= keys && step.ms > 0) {
        chosen.push_back(step.ms);
      }
    }
    std::sort(chosen.begin(), chosen.end());
    return chosen.empty() ? 0.0 : chosen[chosen.size() / 2];
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Step {
    std::int64_t rows;
    std::int64_t keys;
    double ms;  // 0 of the last one
  };

  void Next(const ForwardBatch& batch) {
    const Clock::time_point now = Clock::now();
    if (!steps_.empty()) {
      steps_.back().ms = std::chrono::duration<double, std::milli>(now - begin_).count();
    }
    const std::int64_t keys = *std::max_element(batch.positions.begin(), batch.positions.end()) + 1;
    steps_.push_back({.rows = batch.tokens, .keys = keys, .ms = 0});
    begin_ = now;
  }

  Clock::time_point begin_;
  std::vector<Step> steps_;
};

// Prompts that share all but their last block eight by eight: their keys lie in the prefix cache.
std::vector<SequenceRequest> LongRequests(std::int64_t count, std::int64_t max_tokens) {
  constexpr std::int64_t kDifferent = 8;
  std::vector<SequenceRequest> requests;
  for (std::int64_t i = 0; i < count; ++i) {
    SequenceRequest request{
        .prompt = {}, .max_tokens = max_tokens, .prompt_logits = PromptLogits::kNone};
    const std::int64_t shared = i % kDifferent;
    for (std::int64_t t = 0; t < kContext - max_tokens; ++t) {
      const bool own = t >= kContext - 2 * kTokensPerBlock;
      request.prompt.push_back(
          static_cast<std::int32_t>((t * 7919 + shared * 104'729 + (own ? i * 31 : 0)) % 129'000));
    }
    requests.push_back(request);
  }
  return requests;
}

void TimeSlice(const ModelConfig& model, std::int64_t ranks) {
  constexpr std::int64_t kTokens = 24;
  const RankLayout layout = {.ranks = ranks};
  GpuGroup gpus(ranks);
  std::vector<DeviceWeights> weights;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    gpus.used[static_cast<std::size_t>(rank)]->BindThread();
    weights.push_back(MakeRandomWeights(model, ShapeOf(model, {.rank = rank, .layout = layout}), 0,
                                        *gpus.used[static_cast<std::size_t>(rank)])
                          .value());
  }
  RunOptions options;
  options.kv_format = model.default_kv_format();
  options.step_tokens_max = kChunk;
  options.sequences_max = kSequences;
  options.context_max = kContext;
  options.blocks = 2048;
  options.score_bytes_max = std::int64_t{64} << 20;
  options.row_buckets = RowBuckets(kSequences, kTokensPerBlock);
  options.logits = false;
  SequenceRunner runner(
      [&](const ModelExecutorConfig& base) {
        ModelExecutorConfig config = base;
        config.place.layout = layout;
        config.limits.logit_rows_max = kSequences;
        config.limits.logits_rows_host = 0;
        return gpus.Make(model, weights, config);
      },
      model, options);
  const StepTimes times(runner);
  runner.Run(LongRequests(8, kTokens));
  const std::vector<SequenceOutput> many = runner.Run(LongRequests(kSequences, kTokens));
  const std::vector<SequenceOutput> one = runner.Run(LongRequests(1, kTokens));
  const auto hash = [](const std::vector<SequenceOutput>& outputs) {
    std::uint64_t sum = 0;
    for (const SequenceOutput& output : outputs) {
      for (const std::int32_t id : output.ids) {
        sum = sum * 31 + static_cast<std::uint64_t>(id);
      }
      REQUIRE_FALSE(output.faulty);
    }
    return sum;
  };
  fmt::print(
      "{} of {}: 64 rows at 8K {:.3f} ms, 1 row {:.3f} ms, chunk of 4096 at 8K {:.3f} ms; "
      "tokens {} {}\n",
      ranks, gpus.backends.front()->Name(), times.Median(kSequences, kContext - kTokens),
      times.Median(1, kContext - kTokens), times.Median(kChunk, kChunk + 1), hash(many), hash(one));
}

}  // namespace

// A slice of 8 layers with all experts takes 66 GB of one GPU.  In the folder of configs/.
TEST_CASE("steps of a slice on one GPU and on several", "[.speed]") {
  const ModelConfig whole = LoadModelConfig("configs/models/deepseek-v32").value();
  const ModelConfig model = SliceOf(whole, {.expert_ranks = 1, .layers = 8}).value();
  for (std::int64_t ranks = 1; ranks <= Devices(); ranks *= 2) {
    TimeSlice(model, ranks);
  }
}

}  // namespace dsa::testing
