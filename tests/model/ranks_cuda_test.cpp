// A model on ranks that are GPUs: its logits are those of one GPU and of the CPU but for the order
// of sums, its tokens the same, recorded steps included; equal runs give equal bits.  Takes two
// GPUs: on one, a rank that loads a library's kernel would wait for the other one's.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "model/weight_loader.h"
#include "tests/model/checkpoint_files.h"
#include "tests/model/gpu_group.h"
#include "tests/model/rank_difference.h"
#include "tests/model/rank_requests.h"
#include "tests/model/sequence_runner.h"
#include "tests/temporary_folder.h"

#include <memory>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::testing {
namespace {

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
  const RunOptions options = StepsOf(checkpoint.config());
  RouteWatch watch(backend, checkpoint.config(), options.step_tokens_max);
  SequenceRunner runner(watch, {.config = checkpoint.config(), .weights = weights.weights},
                        options);
  runner.route_of_row = [&](std::int64_t row) { return watch.RouteOf(row); };
  return runner.Run(RankRequests(kLongPrompt));
}

std::vector<SequenceOutput> RunRanks(const Checkpoint& checkpoint, const RankLayout& layout,
                                     Through through) {
  GpuGroup gpus(layout.ranks, 1, through);
  NoProgress progress;
  const std::vector<DeviceWeights> weights =
      LoadRankWeights(checkpoint, layout, gpus.used, progress).value();
  const RunOptions options = StepsOf(checkpoint.config());
  // Of four ranks that share two blocks of an expert's width the first has none, and no gate.
  gpus.used.back()->BindThread();
  RouteWatch watch(*gpus.used.back(), checkpoint.config(), options.step_tokens_max);
  gpus.used.back() = &watch;
  SequenceRunner runner(
      [&](const ModelExecutorConfig& base) {
        ModelExecutorConfig config = base;
        config.place.layout = layout;
        return gpus.Make(checkpoint.config(), weights, config);
      },
      checkpoint.config(), options);
  runner.route_of_row = [&](std::int64_t row) { return watch.RouteOf(row); };
  std::vector<SequenceOutput> outputs = runner.Run(RankRequests(kLongPrompt));
  CHECK(runner.steps_recorded() > 5);
  return outputs;
}

// float32: sums of some hundred terms in other orders.  Narrow: as the goldens of narrow models.
RankBound BoundOf(CheckpointType type) {
  return type == CheckpointType::kF32
             ? RankBound{.logits = 1e-5, .row_logits = 1e-4, .margin = 1e-3F, .rerouted = 0}
             : kNarrowBound;
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
  const std::vector<SequenceOutput> on_two = RunRanks(checkpoint, layout, Through::kPeers);
  const RankBound bound = BoundOf(type);
  const ReplyDifference from_one = CompareReplies(on_two, on_one, bound.margin);
  const ReplyDifference from_cpu = CompareReplies(on_two, on_cpu, bound.margin);
  const ReplyDifference one_from_cpu = CompareReplies(on_one, on_cpu, bound.margin);
  fmt::print(
      "{} type {}, whole experts {}: two GPUs from one {:.2e}, from the CPU {:.2e}; one GPU from "
      "the CPU {:.2e}; rows of other inputs {}, {}, {}; the farthest row {:.2e}, {:.2e}, {:.2e}; "
      "margins of other tokens {:.3f}, {:.3f}, {:.3f}, in moves {:.2f}, {:.2f}, {:.2f}; rows that "
      "went elsewhere {:.4f}, {:.4f}, {:.4f}\n",
      ToString(architecture), static_cast<int>(type), expert_parallel, from_one.logits,
      from_cpu.logits, one_from_cpu.logits, from_one.rows_apart, from_cpu.rows_apart,
      one_from_cpu.rows_apart, from_one.row_logits, from_cpu.row_logits, one_from_cpu.row_logits,
      from_one.margin_lost, from_cpu.margin_lost, one_from_cpu.margin_lost, from_one.moves_lost,
      from_cpu.moves_lost, one_from_cpu.moves_lost, from_one.rerouted, from_cpu.rerouted,
      one_from_cpu.rerouted);
  for (const ReplyDifference& difference : {from_one, from_cpu, one_from_cpu}) {
    CHECK(Keeps(difference, bound));
  }
  CHECK_FALSE(from_one.faulty);
  CHECK(on_two[0].logits.size() == 256 + 10 - 1);
}

TEST_CASE("equal runs on two GPUs give equal bits", "[ranks]") {
  const auto type = GENERATE(CheckpointType::kF32, CheckpointType::kFp8);
  const TemporaryFolder folder;
  MustWrite(OptionsFor(Architecture::kDeepseekV32, type), folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  const RankLayout layout = {.ranks = 2};
  const std::vector<SequenceOutput> first = RunRanks(checkpoint, layout, Through::kPeers);
  CHECK(SameBits(RunRanks(checkpoint, layout, Through::kPeers), first));
  CHECK(
      SameBits(RunRanks(checkpoint, layout, Through::kNccl), first));  // two are in no other order
}

TEST_CASE("a model on four GPUs is the model on one", "[ranks][four]") {
  if (Devices() < 4) {
    fmt::print("four ranks: not so many devices\n");
    return;
  }
  const auto architecture =
      GENERATE(Architecture::kDeepseekV32, Architecture::kGlmMoeDsa, Architecture::kDeepseekV3);
  const auto type = GENERATE(CheckpointType::kF32, CheckpointType::kBf16, CheckpointType::kFp8);
  const auto expert_parallel = GENERATE(false, true);
  const RankLayout layout = {.ranks = 4, .expert_parallel = expert_parallel};
  const TemporaryFolder folder;
  RandomCheckpointOptions options = OptionsFor(architecture, type);
  options.heads = type == CheckpointType::kFp8 ? 8 : 4;  // a rank begins at a block of 128
  MustWrite(options, folder.path());
  const Checkpoint checkpoint = Checkpoint::Open(folder.path()).value();
  const std::unique_ptr<CudaBackend> cuda = CudaBackend::Make(Devices() - 1).value();
  const std::vector<SequenceOutput> on_one = RunOne(checkpoint, *cuda);
  const std::vector<SequenceOutput> on_four = RunRanks(checkpoint, layout, Through::kPeers);
  const RankBound bound = BoundOf(type);
  const ReplyDifference difference = CompareReplies(on_four, on_one, bound.margin);
  fmt::print(
      "{} type {}, whole experts {}: four GPUs from one {:.2e}, the farthest row {:.2e}, "
      "rows of other inputs {}, margin of another token {:.3f}; rows that went elsewhere {:.4f}\n",
      ToString(architecture), static_cast<int>(type), expert_parallel, difference.logits,
      difference.row_logits, difference.rows_apart, difference.margin_lost, difference.rerouted);
  CHECK(Keeps(difference, bound));
  CHECK(on_four[0].logits.size() == 256 + 10 - 1);
  if (!expert_parallel) {
    CHECK(SameBits(RunRanks(checkpoint, layout, Through::kPeers), on_four));
  }
}

}  // namespace dsa::testing
