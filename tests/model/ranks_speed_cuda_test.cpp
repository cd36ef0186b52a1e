// Steps of a slice of a real model on one GPU and on several, how long its collectives take, and
// how long its steps take without them.
#include "kernels/comm/collectives.h"
#include "model/model_slice.h"
#include "model/random_weights.h"
#include "model/weight_loader.h"
#include "tests/model/data_rank_runner.h"
#include "tests/model/gpu_group.h"
#include "tests/model/sequence_runner.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::testing {
namespace {

constexpr std::int64_t kContext = 8192;
constexpr std::int64_t kChunk = 4096;
constexpr std::int64_t kSequences = 64;

// The steps of a run, in ms: from one batch to the next, so with all that the host does; and the
// experts that a step chose, of all layers together.
class StepTimes final {
 public:
  // `pairs` is of the step in front, by layer and expert, and set to zero.
  StepTimes(SequenceRunner& runner, std::vector<std::int64_t>& pairs) : pairs_(pairs) {
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

  // Experts that steps of so many rows chose in a layer, in the mean of `layers`.
  double Experts(std::int64_t rows, std::int64_t keys, std::int64_t layers) const {
    double hit = 0;
    double steps = 0;
    for (const Step& step : steps_) {
      if (step.rows == rows && step.keys >= keys && step.ms > 0) {
        hit += static_cast<double>(step.experts);
        ++steps;
      }
    }
    return steps == 0 ? 0.0 : hit / steps / static_cast<double>(layers);
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Step {
    std::int64_t rows;
    std::int64_t keys;
    double ms;             // 0 of the last one
    std::int64_t experts;  // of all layers
  };

  void Next(const ForwardBatch& batch) {
    const Clock::time_point now = Clock::now();
    if (!steps_.empty()) {
      steps_.back().ms = std::chrono::duration<double, std::milli>(now - begin_).count();
      steps_.back().experts =
          static_cast<std::int64_t>(pairs_.size()) - std::count(pairs_.begin(), pairs_.end(), 0);
    }
    std::fill(pairs_.begin(), pairs_.end(), 0);
    const std::int64_t keys = *std::max_element(batch.positions.begin(), batch.positions.end()) + 1;
    steps_.push_back({.rows = batch.tokens, .keys = keys, .ms = 0, .experts = 0});
    begin_ = Clock::now();
  }

  std::vector<std::int64_t>& pairs_;
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

const char* NameOf(Through through) {
  return through == Through::kPeers  ? ""
         : through == Through::kNccl ? ", over NCCL"
                                     : ", with collectives of a rank alone";
}

// What a step of the model says to others: two sums a layer, of which the last is of the rows that
// need logits, and those; in us, by a recording that is replayed.
double TimeCollectives(const ModelConfig& model, int ranks, Through through, std::int64_t rows,
                       std::int64_t logit_rows) {
  constexpr int kReplays = 20;
  constexpr int kRuns = 9;
  GpuGroup gpus(ranks, 1, through);
  std::barrier<> together(ranks);
  std::vector<double> times;  // of rank 0
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      Backend& backend = *gpus.used[static_cast<std::size_t>(rank)];
      backend.BindThread();
      const auto allocate = [&](std::int64_t values) {
        const auto bytes = static_cast<std::size_t>(values) * sizeof(float);
        DeviceBuffer made = backend.Allocate(bytes).value();
        backend.Zero(made.data(), bytes);
        return made;
      };
      const std::int64_t part = model.vocabulary / ranks;
      const DeviceBuffer partial = allocate(rows * model.hidden);
      const DeviceBuffer sum = allocate(rows * model.hidden);
      const DeviceBuffer logits = allocate(logit_rows * part);
      const DeviceBuffer whole = allocate(logit_rows * model.vocabulary);
      const auto reduce = [&](std::int64_t of) {
        backend.AllReduce(
            {.partial = {partial.data(), DataType::kF32, of, model.hidden, model.hidden},
             .sum = {sum.data(), model.activation_type, of, model.hidden, model.hidden}});
      };
      backend.Record(GraphId{0}, [&] {
        for (std::int64_t i = 1; i < 2 * model.layers; ++i) {
          reduce(rows);
        }
        reduce(logit_rows);
        backend.AllGather({.part = {logits.data(), DataType::kF32, logit_rows, part, part},
                           .whole = {whole.data(), DataType::kF32, logit_rows, model.vocabulary,
                                     model.vocabulary}});
      });
      for (int run = 0; run < kRuns; ++run) {
        backend.Synchronize();
        together.arrive_and_wait();
        const auto start = std::chrono::steady_clock::now();
        for (int replay = 0; replay < kReplays; ++replay) {
          backend.Replay(GraphId{0});
        }
        backend.Synchronize();
        const std::chrono::duration<double, std::micro> took =
            std::chrono::steady_clock::now() - start;
        if (rank == 0) {
          times.push_back(took.count() / kReplays);
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void TimeSlice(const ModelConfig& model, std::int64_t ranks, Through through) {
  constexpr std::int64_t kTokens = 24;
  const RankLayout layout = {.ranks = ranks};
  GpuGroup gpus(ranks, 1, through);
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
  std::unique_ptr<StepExecutor> executor;
  std::vector<std::int64_t> pairs;
  SequenceRunner runner(
      [&](const ModelExecutorConfig& base) {
        ModelExecutorConfig config = base;
        config.place.layout = layout;
        config.limits.logit_rows_max = kSequences;
        config.limits.logits_rows_host = 0;
        executor = gpus.Make(model, weights, config);
        return std::make_unique<OfGroup>(*executor, pairs);
      },
      model, options);
  const StepTimes times(runner, pairs);
  runner.Run(LongRequests(8, kTokens));
  const std::vector<SequenceOutput> many = runner.Run(LongRequests(kSequences, kTokens));
  const std::vector<SequenceOutput> one = runner.Run(LongRequests(1, kTokens));
  const auto hash = [through](const std::vector<SequenceOutput>& outputs) {
    std::uint64_t sum = 0;
    for (const SequenceOutput& output : outputs) {
      for (const std::int32_t id : output.ids) {
        sum = sum * 31 + static_cast<std::uint64_t>(id);
      }
      REQUIRE((through == Through::kNothing || !output.faulty));
    }
    return sum;
  };
  fmt::print(
      "{} of {}{}: 64 rows at 8K {:.3f} ms, 1 row {:.3f} ms, chunk of 4096 at 8K {:.3f} ms; "
      "experts of a layer {:.1f}, {:.1f}, {:.1f}; tokens {} {}\n",
      ranks, gpus.backends.front()->Name(), NameOf(through),
      times.Median(kSequences, kContext - kTokens), times.Median(1, kContext - kTokens),
      times.Median(kChunk, kChunk + 1),
      times.Experts(kSequences, kContext - kTokens, model.layers - model.dense_layers),
      times.Experts(1, kContext - kTokens, model.layers - model.dense_layers),
      times.Experts(kChunk, kChunk + 1, model.layers - model.dense_layers), hash(many), hash(one));
}

}  // namespace

// A slice of 8 layers with all experts takes 66 GB of one GPU.  In the folder of configs/.
TEST_CASE("steps of a slice on one GPU and on several", "[.speed]") {
  const ModelConfig whole = LoadModelConfig("configs/models/deepseek-v32").value();
  const ModelConfig model = SliceOf(whole, {.expert_ranks = 1, .layers = 8}).value();
  for (std::int64_t ranks = 1; ranks <= Devices(); ranks *= 2) {
    TimeSlice(model, ranks, Through::kPeers);
  }
  for (int ranks = 2; ranks <= Devices(); ranks *= 2) {
    for (const Through through : {Through::kNothing, Through::kNccl}) {
      TimeSlice(model, ranks, through);
    }
    for (const Through through : {Through::kPeers, Through::kNothing, Through::kNccl}) {
      fmt::print(
          "collectives of a step of {}{}: 64 rows {:.1f} us, 1 row {:.1f} us, chunk {:.1f} us\n",
          ranks, NameOf(through), TimeCollectives(model, ranks, through, kSequences, kSequences),
          TimeCollectives(model, ranks, through, 1, 1),
          TimeCollectives(model, ranks, through, kChunk, 1));
    }
  }
}

}  // namespace dsa::testing
