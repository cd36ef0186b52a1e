// A model on ranks that are GPUs: its logits are those of one GPU and of the CPU but for the order
// of sums, its tokens the same, recorded steps included; equal runs give equal bits.  Where there
// is one GPU both ranks share it.
#include "kernels/comm/thread_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "model/weight_loader.h"
#include "server/engine/rank_group.h"
#include "tests/model/checkpoint_files.h"
#include "tests/model/sequence_runner.h"
#include "tests/temporary_folder.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <iostream>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

constexpr int kSkipped = 77;  // CTest's skip code for this binary

// A kernel that is loaded while another rank's waits on the same device would wait for it in turn.
// Before the driver starts.
[[maybe_unused]] const int kLoadsAtOnce = setenv("CUDA_MODULE_LOADING", "EAGER", 1);

int Devices() {
  static const int devices = [] {
    int count = 0;
    while (CudaBackend::Make(count).ok()) {
      ++count;
    }
    return count;
  }();
  if (devices == 0) {
    std::cerr << "skipped: no CUDA device\n";
    std::exit(kSkipped);
  }
  return devices;
}

// Widths of three and two blocks of 128; a vocabulary of no multiple of four.
RandomCheckpointOptions OptionsFor(Architecture architecture, CheckpointType type) {
  RandomCheckpointOptions options;
  options.architecture = architecture;
  options.type = type;
  options.seed = 21;
  options.vocabulary = 122;
  options.hidden = 256;
  options.layers = 3;
  options.heads = 4;
  options.q_latent = architecture == Architecture::kDeepseekV3 ? 0 : 128;
  options.dense_width = 384;
  options.expert_width = 256;
  options.experts = 8;
  options.experts_per_token = 2;
  options.index_heads = 4;
  options.index_topk = 64;
  if (architecture == Architecture::kGlmMoeDsa) {
    options.nope = 192;
    options.value = 256;
    options.expert_groups = 1;
    options.expert_groups_kept = 1;
    options.tied_embeddings = true;
  }
  return options;
}

RunOptions StepsOf(const ModelConfig& config) {
  RunOptions options;
  options.kv_format = config.default_kv_format();
  options.sequences_max = 3;
  options.row_buckets = RowBuckets(3, kTokensPerBlock);
  options.record_at_start = true;  // ranks on one device must not wait for one that records
  return options;
}

std::vector<std::int32_t> PromptOf(std::int64_t tokens, std::int32_t seed) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] =
        static_cast<std::int32_t>((i * 37 + i * i * 11 + static_cast<std::size_t>(seed)) % 119);
  }
  return ids;
}

// One prompt four times top-k, others below it and around a block.
std::vector<SequenceRequest> Requests() {
  return {{.prompt = PromptOf(256, 3), .max_tokens = 10},
          {.prompt = PromptOf(1, 4), .max_tokens = 3},
          {.prompt = PromptOf(64, 5), .max_tokens = 20}};
}

std::vector<SequenceOutput> RunOne(const Checkpoint& checkpoint, Backend& backend) {
  NoProgress progress;
  const DeviceWeights weights = LoadWeights(checkpoint, backend, progress).value();
  SequenceRunner runner(backend, {.config = checkpoint.config(), .weights = weights.weights},
                        StepsOf(checkpoint.config()));
  return runner.Run(Requests());
}

std::vector<SequenceOutput> RunRanks(const Checkpoint& checkpoint, const RankLayout& layout) {
  ThreadGroup group(static_cast<int>(layout.ranks));
  std::vector<std::unique_ptr<CudaBackend>> backends;
  std::vector<CudaBackend*> joined;
  std::vector<Backend*> used;
  for (int rank = 0; rank < static_cast<int>(layout.ranks); ++rank) {
    backends.push_back(CudaBackend::Make(rank % Devices()).value());
    joined.push_back(backends.back().get());
    used.push_back(backends.back().get());
  }
  const Status status = CudaBackend::JoinPeers(joined, group);
  REQUIRE(status.ok());
  NoProgress progress;
  const std::vector<DeviceWeights> weights =
      LoadRankWeights(checkpoint, layout, used, progress).value();
  SequenceRunner runner(
      [&](const ModelExecutorConfig& base) {
        ModelExecutorConfig config = base;
        config.place.layout = layout;
        std::vector<RankGroup::Rank> ranks;
        for (std::size_t rank = 0; rank < used.size(); ++rank) {
          ranks.push_back({.backend = *used[rank], .weights = weights[rank].weights});
        }
        return std::move(RankGroup::Create(group, ranks, checkpoint.config(), config)).value();
      },
      checkpoint.config(), StepsOf(checkpoint.config()));
  std::vector<SequenceOutput> outputs = runner.Run(Requests());
  CHECK(runner.steps_recorded() > 5);
  return outputs;
}

struct Difference {
  double logits = 0;         // ||got - whole|| / ||whole|| over all rows
  bool clear_tokens = true;  // the same greedy token at every row whose margin exceeds `margin`
  bool faulty = false;
};

Difference Compare(const std::vector<SequenceOutput>& got, const std::vector<SequenceOutput>& whole,
                   float margin) {
  Difference difference;
  double square = 0;
  double norm = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    difference.faulty = difference.faulty || got[i].faulty;
    for (const auto& [position, row] : got[i].logits) {
      const auto found = whole[i].logits.find(position);
      if (found == whole[i].logits.end()) {
        continue;
      }
      std::vector<float> expected = found->second;
      for (std::size_t v = 0; v < row.size(); ++v) {
        const double delta = double{row[v]} - double{expected[v]};
        square += delta * delta;
        norm += double{expected[v]} * double{expected[v]};
      }
      const auto best = std::max_element(expected.begin(), expected.end());
      const auto token = best - expected.begin();
      const float largest = std::exchange(*best, -INFINITY);
      if (largest - *std::max_element(expected.begin(), expected.end()) > margin) {
        difference.clear_tokens = difference.clear_tokens &&
                                  std::max_element(row.begin(), row.end()) - row.begin() == token;
      }
    }
  }
  difference.logits = std::sqrt(square / norm);
  return difference;
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
  const Difference from_one = Compare(on_two, on_one, bound.margin);
  const Difference from_cpu = Compare(on_two, on_cpu, bound.margin);
  const Difference one_from_cpu = Compare(on_one, on_cpu, bound.margin);
  std::cout << ToString(architecture) << " type " << static_cast<int>(type) << " whole experts "
            << expert_parallel << ": two GPUs from one " << from_one.logits << ", from the CPU "
            << from_cpu.logits << "; one GPU from the CPU " << one_from_cpu.logits << "\n"
            << std::flush;
  CHECK(from_one.logits < bound.logits);
  CHECK(from_cpu.logits < bound.logits);
  CHECK(from_one.clear_tokens);
  CHECK(from_cpu.clear_tokens);
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

}  // namespace dsa::testing
