// The simulator's model: a pure function of tokens, computed in two ways.
//
// FakeExecutor computes it as the real model does, through the paged cache: it stores a value in
// the slots it is told to write and derives the next token from every value that it reads back
// through the block tables.  Like a device it computes from a copy of what was packed, and keeps
// its block tables from step to step.  RunAlone computes it from the request alone.  Any error of
// paging, sharing, preemption or batching makes the two differ.
#pragma once

#include "cache/block_pool.h"
#include "model/forward_batch.h"
#include "scheduler/request.h"
#include "scheduler/scheduler.h"
#include "server/engine/batch_builder.h"
#include "server/engine/executor.h"
#include "server/engine/text_decoder.h"
#include "tests/sim/sim_config.h"
#include "tests/sim/time_laws.h"
#include "tests/sim/wait_laws.h"
#include "tests/sim/write_laws.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace dsa::sim {

// The text of a token.  One that ends with '<' begins a character that the next token completes;
// at the end of a reply it shows as '?'.
std::string PieceOf(const SimConfig& config, TokenId id);

// What a request gives when it is the only one.
struct Expected {
  std::vector<TokenId> tokens;
  std::string text;
  FinishReason finish = FinishReason::kLength;
  std::vector<float> prompt_logprobs{};  // of all tokens of the prompt but the first
};
Expected RunAlone(const SimConfig& config, const Request& request);

// The text that `tokens` show when a reply is cut off behind them; none of them ends it.
std::string TextOf(const SimConfig& config, const std::vector<TokenId>& tokens);

class FakeDecoderFactory final : public TextDecoderFactory {
 public:
  explicit FakeDecoderFactory(const SimConfig& config) : config_(config) {}
  std::unique_ptr<TextDecoder> Make() const override;
  std::int64_t text_bytes_max() const override { return 8; }

 private:
  const SimConfig& config_;
};

class FakeExecutor final : public StepExecutor {
 public:
  // `on_execute` is called while the step is in flight: time passes, clients come and go.
  FakeExecutor(const SimConfig& config, std::function<void()> on_execute)
      : config_(config),
        on_execute_(std::move(on_execute)),
        writes_(config),
        times_(config, [this](const Sequence& sequence,
                              std::int64_t position) { return ExpectedPath(sequence, position); }),
        waits_(config, times_),
        padding_blocks_(
            PaddingBlocks(config.row_buckets, config.data_ranks, config.tokens_per_block)) {
    const std::int64_t blocks = std::int64_t{config.blocks} + padding_blocks_;
    values_.assign(blocks * config.tokens_per_block, 0);
  }

  // What it was asked for last.
  struct Launched {
    std::int64_t steps = 0;  // so far
    StepShape shape{};
    bool recorded = false;
    std::int64_t rows = 0;    // without padding
    bool any_sparse = false;  // some row must select
    bool decodes = false;     // every row is a reply's, if there is one
  };
  const Launched& launched() const { return launched_; }

  std::function<void()> on_launch;  // at the beginning of Launch, when all ranks have their plans

  // Before the first step.
  void Observe(const BlockPool& pool, const Scheduler& scheduler, const StepCostModel& costs);

  void Launch(const ForwardBatch& batch) override;
  const StepResult& Collect() override;
  bool RunsAhead() const override { return config_.runs_ahead; }
  std::int64_t OwnUs() const override { return own_us; }

  std::int64_t own_us = 0;  // of the step in flight

  const WriteLaws& writes() const { return writes_; }
  const WaitLaws& waits() const { return waits_; }
  TimeLaws& times() { return times_; }

 private:
  void CheckShape(const ForwardBatch& batch) const;
  AttentionPath ExpectedPath(const Sequence& sequence, std::int64_t position) const;
  void CheckPaths(const ForwardBatch& batch);
  void CheckRecorded(const ForwardBatch& batch);
  void Upload(const ForwardBatch& batch);
  void UpdateAdjustments();
  void ComputeRow(std::int64_t row, std::int32_t& fault);
  void Sample(const StepOutputs& outputs);

  static constexpr std::int32_t kNoBlock = -1;

  const SimConfig& config_;
  std::function<void()> on_execute_;
  const BlockPool* pool_ = nullptr;
  const Scheduler* scheduler_ = nullptr;
  WriteLaws writes_;
  TimeLaws times_;
  WaitLaws waits_;

  Launched launched_;

  // The device.
  const std::int32_t padding_blocks_;
  std::vector<std::uint64_t> values_;       // by slot
  std::vector<std::int32_t> block_tables_;  // [slots + 1, table_columns_]; the last is padding's
  std::int64_t padding_row_ = 0;
  std::int64_t table_columns_ = 0;
  std::vector<LogitAdjustment> adjustments_;  // rows of row_adjustments_
  std::int64_t row_adjustments_ = 0;
  std::int64_t adjustment_rows_ = 0;
  std::vector<std::uint8_t> device_;  // what was uploaded
  StepInputs inputs_{};               // views of it
  HostStepOutputs outputs_;
  HostStepOutputs before_;  // of the step before, while this one runs

  // By rows, whether they select, and visible_max.
  std::map<std::tuple<std::int64_t, bool, std::int64_t>, StepShape> recorded_;
};

// One for each data rank.
class FakeExecutors final : public StepExecutor {
 public:
  // Called once a step: before any rank is launched, and while it is in flight on all of them.
  FakeExecutors(const SimConfig& config, const std::function<void()>& on_launch,
                const std::function<void()>& on_execute)
      : runs_ahead_(config.runs_ahead) {
    for (std::int64_t rank = 0; rank < config.data_ranks; ++rank) {
      ranks_.push_back(std::make_unique<FakeExecutor>(
          config, rank == 0 ? on_execute : std::function<void()>([] {})));
    }
    ranks_.front()->on_launch = on_launch;
  }

  void Launch(const ForwardBatch& batch) override { ranks_.front()->Launch(batch); }
  const StepResult& Collect() override { return ranks_.front()->Collect(); }
  bool RunsAhead() const override { return runs_ahead_; }
  StepExecutor& OfDataRank(std::int64_t rank) override {
    return *ranks_.at(static_cast<std::size_t>(rank));
  }

  std::size_t size() const { return ranks_.size(); }
  FakeExecutor& At(std::size_t rank) { return *ranks_.at(rank); }
  const FakeExecutor& At(std::size_t rank) const { return *ranks_.at(rank); }

 private:
  const bool runs_ahead_;
  std::vector<std::unique_ptr<FakeExecutor>> ranks_;
};

}  // namespace dsa::sim
