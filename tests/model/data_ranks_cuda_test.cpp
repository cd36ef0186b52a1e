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
#include <cmath>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <fmt/ranges.h>

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
                 Back back = Back::kPairs, const RankLayout& layout = kTwo) {
  GpuGroup gpus(layout.all_ranks(), layout.data_ranks);
  NoProgress progress;
  const std::vector<DeviceWeights> weights =
      LoadRankWeights(checkpoint, layout, gpus.used, progress).value();
  DataRankRunner runner(checkpoint.config(), layout, [&](const ModelExecutorConfig& base) {
    ModelExecutorConfig config = base;
    config.place.layout = layout;
    config.batch_invariant = back == Back::kPairs;
    config.limits.combines_parts = back == Back::kParts;
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

TEST_CASE("data ranks on four GPUs give a request what one GPU gives it", "[ranks][four]") {
  if (Devices() < 4) {
    fmt::print("four ranks: not so many devices\n");
    return;
  }
  const auto architecture =
      GENERATE(Architecture::kDeepseekV32, Architecture::kGlmMoeDsa, Architecture::kDeepseekV3);
  const auto type = GENERATE(CheckpointType::kF32, CheckpointType::kBf16, CheckpointType::kFp8);
  const auto tensor_ranks = GENERATE(1, 2);
  const RankLayout layout = {
      .ranks = tensor_ranks, .expert_parallel = true, .data_ranks = 4 / tensor_ranks};
  const TemporaryFolder folder;
  MustWrite(OptionsFor(architecture, type), folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  const std::vector<RankWork> work = UnevenWork(layout.data_ranks, kLongPrompt);
  const TwoRuns runs = RunRanks(checkpoint, work, Back::kPairs, layout);
  CHECK(runs.steps_recorded > 10);
  CHECK(SameOfAll(runs));
  const bool is_float32 = type == CheckpointType::kF32;
  for (std::size_t rank = 0; rank < work.size(); ++rank) {
    if (work[rank].requests.empty()) {
      continue;  // the last of four data ranks has nothing to do
    }
    const ReplyDifference difference = CompareReplies(
        runs.first[rank], RunOne(checkpoint, work[rank].requests), is_float32 ? 1e-3F : 0.1F);
    fmt::print(
        "{} type {}, data rank {} of {}: from one GPU {:.2e}, equal bits {:.4f}, rows apart "
        "{}\n",
        ToString(architecture), static_cast<int>(type), rank, layout.data_ranks, difference.logits,
        difference.equal_values, difference.rows_apart);
    CHECK(difference.logits < (is_float32 ? 1e-5 : 3e-2));
    if (tensor_ranks == 1 && !is_float32) {
      CHECK(difference.equal_values == 1.0);
    }
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

ModelExecutorConfig SpeedConfig(const ModelExecutorConfig& base, const RankLayout& layout) {
  ModelExecutorConfig config = base;
  config.place.layout = layout;
  config.limits.logit_rows_max = 64;
  config.limits.logits_rows_host = 0;
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

// Steps of so many rows: ms from the end of one to that of the next, so with all that the host
// does, of which a test's planning of two ranks one after the other is a part; from its launch to
// its results; and experts of a layer that a GPU reads, in the mean and at most.
struct StepTimes {
  std::vector<double> whole;
  std::vector<double> launched;
  double experts = 0;
  std::int64_t experts_max = 0;

  // Of [layers, all experts]; each GPU has so many of them.
  void SetExperts(const std::vector<std::int64_t>& pairs, std::int64_t per_gpu) {
    std::int64_t all = 0;
    experts_max = 0;
    for (auto begin = pairs.begin(); begin != pairs.end(); begin += per_gpu) {
      const std::int64_t hit = per_gpu - std::count(begin, begin + per_gpu, 0);
      experts_max = std::max(experts_max, hit);
      all += hit;
    }
    experts = static_cast<double>(all * per_gpu) / static_cast<double>(pairs.size());
  }
};

StepTimes TimeOne(const ModelConfig& model, std::int64_t rows) {
  const std::unique_ptr<CudaBackend> backend = CudaBackend::Make(0).value();
  const DeviceWeights weights = RandomWeights(model, {}, *backend);
  RunOptions options;
  SetSpeedOptions(model, options);
  std::unique_ptr<ModelExecutor> executor;
  std::vector<std::int64_t> pairs;
  SequenceRunner runner(
      [&](const ModelExecutorConfig& base) {
        executor = ModelExecutor::Create(*backend, {.config = model, .weights = weights.weights},
                                         SpeedConfig(base, {}))
                       .value();
        return std::make_unique<OfGroup>(*executor, pairs);
      },
      model, options);
  StepTimes times;
  for (const bool is_timed : {false, true}) {
    runner.Submit(LongRequests(rows, 0));
    auto before = std::chrono::steady_clock::now();
    while (runner.is_busy()) {
      const BatchShape shape = runner.Plan();
      pairs.clear();
      const auto start = std::chrono::steady_clock::now();
      runner.Launch(shape);
      runner.Finish();
      const auto now = std::chrono::steady_clock::now();
      if (is_timed && shape.shape.tokens == rows) {
        times.whole.push_back(std::chrono::duration<double, std::milli>(now - before).count());
        times.launched.push_back(std::chrono::duration<double, std::milli>(now - start).count());
        times.SetExperts(pairs, model.experts);
      }
      before = now;
    }
  }
  RequireNoFaults(runner.outputs());
  return times;
}

// The same of data ranks, of the steps in which one has so many rows and no other more.
std::vector<StepTimes> TimeRanks(const ModelConfig& model,
                                 const std::vector<std::vector<std::int64_t>>& rows) {
  const auto ranks = static_cast<std::int64_t>(rows.front().size());
  const RankLayout layout = {.expert_parallel = true, .data_ranks = ranks};
  GpuGroup gpus(ranks, ranks);
  std::vector<DeviceWeights> weights;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    weights.push_back(RandomWeights(model, {.rank = rank, .layout = layout},
                                    *gpus.used[static_cast<std::size_t>(rank)]));
  }
  DataRankRunner runner(model, layout, [&](const ModelExecutorConfig& base) {
    return gpus.MakeRanks(model, weights, SpeedConfig(base, layout));
  });
  SetSpeedOptions(model, runner.options);
  std::vector<StepTimes> times;
  for (const std::vector<std::int64_t>& of_ranks : rows) {
    std::vector<RankWork> work;
    for (const std::int64_t count : of_ranks) {
      work.push_back({.requests = LongRequests(count, static_cast<std::int64_t>(work.size()))});
    }
    const std::int64_t most = *std::max_element(of_ranks.begin(), of_ranks.end());
    StepTimes of_rows;
    auto before = std::chrono::steady_clock::now();
    runner.after_step = [&](const std::vector<BatchShape>& shapes) {
      const auto now = std::chrono::steady_clock::now();
      if (shapes[0].bucket == most) {
        of_rows.whole.push_back(std::chrono::duration<double, std::milli>(now - before).count());
        of_rows.launched.push_back(
            std::chrono::duration<double, std::milli>(runner.elapsed()).count());
        of_rows.SetExperts(runner.step_pairs(), model.experts / ranks);
      }
      before = now;
    };
    runner.Run(work);
    of_rows = {};
    for (const std::vector<SequenceOutput>& of_rank : runner.Run(work)) {
      RequireNoFaults(of_rank);
    }
    times.push_back(of_rows);
  }
  return times;
}

void Print(const std::string& what, const StepTimes& times) {
  fmt::print(
      "{}: {:.3f} ms from step to step, {:.3f} from launch to results; experts of a layer on a "
      "GPU: {:.1f}, at most {}\n",
      what, Median(times.whole), Median(times.launched), times.experts, times.experts_max);
  (void)std::fflush(stdout);
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
  const std::vector<std::vector<std::int64_t>> rows = {{64, 64}, {8, 8}, {1, 1}, {64, 0}, {8, 0}};
  const std::vector<StepTimes> two = TimeRanks(model, rows);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Print(fmt::format("two data ranks of {} rows", fmt::join(rows[i], " and ")), two[i]);
  }
  for (std::size_t i = 0; i < 3; ++i) {
    const auto compare = [&, i](const ModelConfig& of_one) {
      const StepTimes one = TimeOne(of_one, rows[i].front());
      Print(fmt::format("one GPU of {} experts, {} rows", of_one.experts, rows[i].front()), one);
      fmt::print("  tokens of two against one: {:.3f} from step to step, {:.3f} from launch\n",
                 2 * Median(one.whole) / Median(two[i].whole),
                 2 * Median(one.launched) / Median(two[i].launched));
      return one.experts;
    };
    // Random weights prefer some experts, of 256 more than of 128; so also with as many fewer as
    // make one GPU read about what each of two reads.
    const double read = compare(half);
    ModelConfig fewer = half;
    fewer.experts = std::lround(32.0 * two[i].experts / read) * 4;
    compare(fewer);
  }
  fmt::print("one of them idle, against both at work: {:.3f} at 64 rows, {:.3f} at 8\n",
             Median(two[3].whole) / Median(two[0].whole),
             Median(two[4].whole) / Median(two[1].whole));
}

// Likewise on four, of which each holds the experts of 64 of one GPU.
TEST_CASE("steps of a slice on one GPU and on four data ranks", "[.speed-data-four]") {
  const ModelConfig whole = LoadModelConfig("configs/models/deepseek-v32").value();
  const ModelConfig model = SliceOf(whole, {.expert_ranks = 1, .layers = 8}).value();
  ModelConfig quarter = model;
  quarter.experts = 64;
  quarter.expert_groups = 2;
  quarter.expert_groups_kept = 2;
  REQUIRE(Devices() >= 4);
  const std::vector<std::vector<std::int64_t>> rows = {
      {64, 64, 64, 64}, {8, 8, 8, 8}, {1, 1, 1, 1}, {64, 0, 0, 0}, {8, 0, 0, 0}};
  const std::vector<StepTimes> four = TimeRanks(model, rows);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    Print(fmt::format("four data ranks of {} rows", fmt::join(rows[i], ", ")), four[i]);
  }
  for (std::size_t i = 0; i < 3; ++i) {
    const StepTimes one = TimeOne(quarter, rows[i].front());
    Print(fmt::format("one GPU of 64 experts, {} rows", rows[i].front()), one);
    fmt::print("  tokens of four against one: {:.3f} from step to step, {:.3f} from launch\n",
               4 * Median(one.whole) / Median(four[i].whole),
               4 * Median(one.launched) / Median(four[i].launched));
  }
  fmt::print("three of them idle, against all at work: {:.3f} at 64 rows, {:.3f} at 8\n",
             Median(four[3].whole) / Median(four[0].whole),
             Median(four[4].whole) / Median(four[1].whole));
}

}  // namespace dsa::testing
