// A model whose ranks have rows of their own and a GPU each, the experts over all: each request
// gets what one GPU gives it, whatever the others do.  Takes two GPUs.
#include "model/model_slice.h"
#include "model/random_weights.h"
#include "model/weight_loader.h"
#include "tests/model/checkpoint_files.h"
#include "tests/model/data_rank_runner.h"
#include "tests/model/gpu_group.h"
#include "tests/model/rank_difference.h"
#include "tests/temporary_folder.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::testing {
namespace {

constexpr std::int64_t kLongPrompt = 256;  // four times top-k
constexpr std::int64_t kRows = 64;         // of a step at most: more are not batch-invariant

constexpr RankLayout kTwo = {.expert_parallel = true, .data_ranks = 2};

RandomCheckpointOptions OptionsFor(Architecture architecture, CheckpointType type) {
  RandomCheckpointOptions options = SplitOptions(architecture, type);
  options.hidden = 256;
  options.q_latent *= 2;
  return options;
}

void Adjust(const ModelConfig& model, RunOptions& options) {
  options.kv_format = model.default_kv_format();
  options.step_tokens_max = kRows;
  options.sequences_max = 3;
  options.row_buckets = RowBuckets(3, kTokensPerBlock);
  options.record_at_start = true;
}

// A checkpoint on one GPU.
std::vector<SequenceOutput> RunOne(const Checkpoint& checkpoint,
                                   const std::vector<SequenceRequest>& requests) {
  const std::unique_ptr<CudaBackend> backend = CudaBackend::Make(Devices() - 1).value();
  NoProgress progress;
  const DeviceWeights weights = LoadWeights(checkpoint, *backend, progress).value();
  RunOptions options;
  Adjust(checkpoint.config(), options);
  SequenceRunner runner(
      [&](const ModelExecutorConfig& base) {
        ModelExecutorConfig config = base;
        config.batch_invariant = true;
        return ModelExecutor::Create(
                   *backend, {.config = checkpoint.config(), .weights = weights.weights}, config)
            .value();
      },
      checkpoint.config(), options);
  return runner.Run(requests);
}

struct TwoRuns {
  std::vector<std::vector<SequenceOutput>> first;
  std::vector<std::vector<SequenceOutput>> second;  // of the same, on what the first left
  std::int64_t steps_recorded;
};

enum class Back { kPairs, kParts };

TwoRuns RunRanks(const Checkpoint& checkpoint, const std::vector<RankWork>& work,
                 Back back = Back::kPairs) {
  GpuGroup gpus(kTwo.data_ranks, kTwo.data_ranks);
  NoProgress progress;
  const std::vector<DeviceWeights> weights =
      LoadRankWeights(checkpoint, kTwo, gpus.used, progress).value();
  DataRankRunner runner(checkpoint.config(), kTwo, [&](const ModelExecutorConfig& base) {
    ModelExecutorConfig config = base;
    config.place.layout = kTwo;
    config.batch_invariant = back == Back::kPairs;
    config.combines_parts = back == Back::kParts;
    return gpus.MakeRanks(checkpoint.config(), weights, config);
  });
  Adjust(checkpoint.config(), runner.options);
  TwoRuns runs;
  runs.first = runner.Run(work);
  runs.second = runner.Run(work);
  runs.steps_recorded = runner.runner(0).steps_recorded();
  return runs;
}

bool SameOfAll(const TwoRuns& runs) {
  bool same = true;
  for (std::size_t rank = 0; rank < runs.first.size(); ++rank) {
    same = same && (runs.first[rank].empty() || SameBits(runs.first[rank], runs.second[rank]));
  }
  return same;
}

}  // namespace

TEST_CASE("data ranks on two GPUs give a request what one GPU gives it", "[ranks][data]") {
  const auto architecture =
      GENERATE(Architecture::kDeepseekV32, Architecture::kGlmMoeDsa, Architecture::kDeepseekV3);
  const auto type = GENERATE(CheckpointType::kF32, CheckpointType::kBf16, CheckpointType::kFp8);
  const TemporaryFolder folder;
  MustWrite(OptionsFor(architecture, type), folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  const std::vector<RankWork> work = UnevenWork(2, kLongPrompt);
  const Back back = GENERATE(Back::kPairs, Back::kParts);
  const TwoRuns runs = RunRanks(checkpoint, work, back);
  CHECK(runs.steps_recorded > 10);
  CHECK(SameOfAll(runs));
  for (std::size_t rank = 0; rank < work.size(); ++rank) {
    const float margin = type == CheckpointType::kF32 ? 1e-3F : 0.1F;
    const ReplyDifference difference =
        CompareReplies(runs.first[rank], RunOne(checkpoint, work[rank].requests), margin);
    fmt::print(
        "{} type {}, {}, data rank {}: from one GPU {:.2e}, equal bits {:.4f}, rows apart {}\n",
        ToString(architecture), static_cast<int>(type), back == Back::kPairs ? "pairs" : "parts",
        rank, difference.logits, difference.equal_values, difference.rows_apart);
    CHECK(difference.logits < (type == CheckpointType::kF32 ? 1e-5 : 3e-2));
    CHECK(difference.clear_tokens);
    CHECK_FALSE(difference.faulty);
  }
}

TEST_CASE("a data rank on a GPU works while the other is idle", "[ranks][data]") {
  const std::size_t busy = GENERATE(0, 1);
  const TemporaryFolder folder;
  MustWrite(OptionsFor(Architecture::kDeepseekV32, CheckpointType::kFp8), folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  std::vector<RankWork> work(2);
  work[busy].requests = RankRequests(kLongPrompt);
  const TwoRuns runs = RunRanks(checkpoint, work);
  CHECK(SameOfAll(runs));
  const ReplyDifference difference =
      CompareReplies(runs.first[busy], RunOne(checkpoint, work[busy].requests), 0.1F);
  fmt::print("the other idle: from one GPU {:.2e}, equal bits {:.4f}\n", difference.logits,
             difference.equal_values);
  CHECK(difference.logits < 3e-2);
  CHECK(difference.clear_tokens);
}

namespace {

constexpr std::int64_t kContext = 2048;
constexpr std::int64_t kTokens = 40;

// Prompts of different ids, most of which lie in the prefix cache from the first time on.
std::vector<SequenceRequest> LongRequests(std::int64_t count, std::int64_t seed) {
  std::vector<SequenceRequest> requests;
  for (std::int64_t i = 0; i < count; ++i) {
    SequenceRequest request{
        .prompt = {}, .max_tokens = kTokens, .prompt_logits = PromptLogits::kNone};
    for (std::int64_t t = 0; t < kContext - kTokens; ++t) {
      request.prompt.push_back(
          static_cast<std::int32_t>((t * 7919 + (i + seed * 64) * 104'729) % 129'000));
    }
    requests.push_back(request);
  }
  return requests;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}

void SetSpeedOptions(const ModelConfig& model, RunOptions& options) {
  options.kv_format = model.default_kv_format();
  options.step_tokens_max = 4096;
  options.sequences_max = 64;
  options.context_max = kContext;
  options.blocks = 64 * kContext / kTokensPerBlock + 64;
  options.score_bytes_max = std::int64_t{64} << 20;
  options.row_buckets = RowBuckets(64, kTokensPerBlock);
  options.logits = false;
}

ModelExecutorConfig SpeedConfig(const ModelExecutorConfig& base, const RankLayout& layout,
                                bool combines_parts) {
  ModelExecutorConfig config = base;
  config.place.layout = layout;
  config.limits.logit_rows_max = 64;
  config.limits.logits_rows_host = 0;
  config.combines_parts = combines_parts;
  return config;
}

DeviceWeights RandomWeights(const ModelConfig& model, const RankPlace& place, Backend& backend) {
  backend.BindThread();
  return MakeRandomWeights(model, ShapeOf(model, place), 0, backend).value();
}

// Rows that are not finite choose experts as no model does.
void RequireNoFaults(const std::vector<SequenceOutput>& outputs) {
  for (const SequenceOutput& output : outputs) {
    REQUIRE_FALSE(output.faulty);
  }
}

// Median ms from one decode step of so many rows to the next.
double TimeOne(const ModelConfig& model, std::int64_t rows) {
  const std::unique_ptr<CudaBackend> backend = CudaBackend::Make(0).value();
  const DeviceWeights weights = RandomWeights(model, {}, *backend);
  RunOptions options;
  SetSpeedOptions(model, options);
  SequenceRunner runner(
      [&](const ModelExecutorConfig& base) {
        return ModelExecutor::Create(*backend, {.config = model, .weights = weights.weights},
                                     SpeedConfig(base, {}, false))
            .value();
      },
      model, options);
  std::vector<double> steps;
  std::chrono::steady_clock::time_point before;
  std::int64_t rows_before = 0;
  runner.before_step = [&](const ForwardBatch& batch) {
    const auto now = std::chrono::steady_clock::now();
    if (rows_before == rows) {
      steps.push_back(std::chrono::duration<double, std::milli>(now - before).count());
    }
    before = now;
    rows_before = batch.tokens;
  };
  runner.Run(LongRequests(rows, 0));
  steps.clear();
  RequireNoFaults(runner.Run(LongRequests(rows, 0)));
  return Median(steps);
}

// The same of two data ranks, of the steps in which both have so many rows.
std::vector<double> TimeRanks(const ModelConfig& model,
                              const std::vector<std::pair<std::int64_t, std::int64_t>>& rows,
                              bool combines_parts) {
  GpuGroup gpus(2, 2);
  std::vector<DeviceWeights> weights;
  for (std::int64_t rank = 0; rank < 2; ++rank) {
    weights.push_back(RandomWeights(model, {.rank = rank, .layout = kTwo},
                                    *gpus.used[static_cast<std::size_t>(rank)]));
  }
  DataRankRunner runner(model, kTwo, [&](const ModelExecutorConfig& base) {
    return gpus.MakeRanks(model, weights, SpeedConfig(base, kTwo, combines_parts));
  });
  SetSpeedOptions(model, runner.options);
  std::vector<double> medians;
  for (const auto& [first, second] : rows) {
    const std::vector<RankWork> work = {{.requests = LongRequests(first, 0)},
                                        {.requests = LongRequests(second, 1)}};
    // From the end of one step to that of the next, as TimeOne has it: with all that the host does.
    std::vector<double> steps;
    auto before = std::chrono::steady_clock::now();
    runner.after_step = [&](const std::vector<BatchShape>& shapes) {
      const auto now = std::chrono::steady_clock::now();
      if (shapes[0].bucket == std::max(first, second)) {
        steps.push_back(std::chrono::duration<double, std::milli>(now - before).count());
      }
      before = now;
    };
    runner.Run(work);
    steps.clear();
    for (const std::vector<SequenceOutput>& of_rank : runner.Run(work)) {
      RequireNoFaults(of_rank);
    }
    medians.push_back(Median(steps));
  }
  return medians;
}

}  // namespace

// Of a slice of 8 layers: the experts of one GPU are as many as those of each rank, 33 GB on each.
// In the folder of configs/.
TEST_CASE("steps of a slice on one GPU and on two data ranks", "[.speed-data]") {
  const ModelConfig whole = LoadModelConfig("configs/models/deepseek-v32").value();
  const ModelConfig model = SliceOf(whole, {.expert_ranks = 1, .layers = 8}).value();
  ModelConfig half = model;
  half.experts = 128;
  half.expert_groups = 4;
  half.expert_groups_kept = 4;
  REQUIRE(Devices() >= 2);
  for (const auto& [ranks_have, combines_parts] :
       {std::pair(half, true), std::pair(model, true), std::pair(model, false)}) {
    const std::vector<double> ms =
        TimeRanks(ranks_have, {{64, 64}, {8, 8}, {64, 0}, {1, 1}, {8, 0}}, combines_parts);
    fmt::print(
        "two data ranks of {} experts, {}: 64 rows each {:.3f} ms, 8 {:.3f}, 1 {:.3f}; one of "
        "them idle: 64 rows {:.3f}, 8 {:.3f}\n",
        ranks_have.experts, combines_parts ? "parts" : "pairs", ms[0], ms[1], ms[3], ms[2], ms[4]);
    (void)std::fflush(stdout);
  }
  for (const std::int64_t rows : {64, 8, 1}) {
    fmt::print("one GPU of 128 experts: {} rows {:.3f} ms\n", rows, TimeOne(half, rows));
    (void)std::fflush(stdout);
  }
}

}  // namespace dsa::testing
