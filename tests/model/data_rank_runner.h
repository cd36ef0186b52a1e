// Runs requests on ranks that have sequences and caches of their own, step by step together.
#pragma once

#include "server/engine/rank_group.h"
#include "tests/model/rank_requests.h"
#include "tests/model/sequence_runner.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

namespace dsa::testing {

// An executor that stays its owner's, for a SequenceRunner, which owns its own; adds up how many
// rows chose each expert of each layer.
class OfGroup final : public StepExecutor {
 public:
  OfGroup(StepExecutor& inner, std::vector<std::int64_t>& pairs) : inner_(inner), pairs_(pairs) {}
  void Launch(const ForwardBatch& batch) override { inner_.Launch(batch); }
  const StepResult& Collect() override {
    const StepResult& result = inner_.Collect();
    pairs_.resize(std::max(pairs_.size(), result.expert_pairs.size()));
    std::transform(result.expert_pairs.begin(), result.expert_pairs.end(), pairs_.begin(),
                   pairs_.begin(), std::plus<std::int64_t>());
    return result;
  }

 private:
  StepExecutor& inner_;
  std::vector<std::int64_t>& pairs_;
};

// What a data rank is asked for, and in which step the requests come.
struct RankWork {
  std::vector<SequenceRequest> requests;
  std::int64_t begins_at_step = 0;
};

// The first rank has more to do than the others, which finish before it; the second comes later;
// the last of several has nothing to do.
inline std::vector<RankWork> UnevenWork(std::int64_t data_ranks, std::int64_t long_prompt) {
  std::vector<RankWork> work(static_cast<std::size_t>(data_ranks));
  work[0].requests = RankRequests(long_prompt);
  work[1] = {.requests = {{.prompt = RankPrompt(90, 7), .max_tokens = 6},
                          {.prompt = RankPrompt(20, 8), .max_tokens = 4}},
             .begins_at_step = 3};
  if (data_ranks > 2) {
    work[2].requests = {{.prompt = RankPrompt(70, 9), .max_tokens = 2}};
  }
  return work;
}

class DataRankRunner final {
 public:
  using MakeGroup = std::function<std::unique_ptr<RankGroup>(const ModelExecutorConfig& config)>;

  // `make` is called once; what it uses outlives the runner.
  DataRankRunner(const ModelConfig& model, const RankLayout& layout, MakeGroup make)
      : model_(model), layout_(layout), make_(std::move(make)) {
    options.kv_format = model.default_kv_format();
    options.data_ranks = layout.data_ranks;
  }

  std::vector<std::vector<SequenceOutput>> Run(const std::vector<RankWork>& work) {
    if (runners_.empty()) {
      MakeRunners();
    }
    bool is_busy = true;
    for (std::int64_t step = 0; is_busy; ++step) {
      is_busy = false;
      for (std::size_t rank = 0; rank < runners_.size(); ++rank) {
        if (work[rank].begins_at_step == step) {
          runners_[rank]->Submit(work[rank].requests);
        }
        is_busy = is_busy || runners_[rank]->is_busy() || work[rank].begins_at_step > step;
      }
      if (is_busy) {
        Step();
      }
    }
    std::vector<std::vector<SequenceOutput>> outputs;
    for (const auto& runner : runners_) {
      outputs.push_back(runner->outputs());
    }
    return outputs;
  }

  std::int64_t rows_of_ranks() const { return rows_of_ranks_; }
  std::int64_t pairs_counted() const { return pairs_counted_; }  // by the results of all steps
  // Of the last step, all ranks' rows: how many chose each expert of each layer.
  const std::vector<std::int64_t>& step_pairs() const { return step_pairs_; }
  const SequenceRunner& runner(std::size_t rank) const { return *runners_[rank]; }
  // Of the last step.
  std::chrono::microseconds elapsed() const { return elapsed_; }
  std::chrono::microseconds Own(std::int64_t rank) {
    return std::chrono::microseconds(group_->OfDataRank(rank).OwnUs());
  }

  RunOptions options;  // before the first Run
  // Called behind each step with what the ranks had of it.
  std::function<void(const std::vector<BatchShape>& shapes)> after_step;

 private:
  void MakeRunners() {
    for (std::int64_t rank = 0; rank < layout_.data_ranks; ++rank) {
      const auto make = [&](const ModelExecutorConfig& config) -> std::unique_ptr<StepExecutor> {
        if (group_ == nullptr) {
          group_ = make_(config);
        }
        return std::make_unique<OfGroup>(group_->OfDataRank(rank), step_pairs_);
      };
      runners_.push_back(std::make_unique<SequenceRunner>(make, model_, options));
    }
  }

  void Step() {
    std::vector<BatchShape> shapes;
    for (const auto& runner : runners_) {
      shapes.push_back(runner->Plan());
      rows_of_ranks_ += shapes.back().shape.tokens;
    }
    AgreeOnStep(shapes);
    step_pairs_.clear();
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t rank = 0; rank < runners_.size(); ++rank) {
      runners_[rank]->Launch(shapes[rank]);
    }
    for (const auto& runner : runners_) {
      runner->Finish();
    }
    elapsed_ = std::chrono::duration_cast<std::chrono::microseconds>(
        std::chrono::steady_clock::now() - start);
    pairs_counted_ = std::accumulate(step_pairs_.begin(), step_pairs_.end(), pairs_counted_);
    if (after_step) {
      after_step(shapes);
    }
  }

  const ModelConfig& model_;
  const RankLayout layout_;
  MakeGroup make_;
  std::unique_ptr<RankGroup> group_;
  std::vector<std::unique_ptr<SequenceRunner>> runners_;
  std::int64_t rows_of_ranks_ = 0;  // without padding, of all steps
  std::int64_t pairs_counted_ = 0;
  std::vector<std::int64_t> step_pairs_;
  std::chrono::microseconds elapsed_{};
};

}  // namespace dsa::testing
