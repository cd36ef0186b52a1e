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
        waits_(config, times_) {
    const std::int64_t blocks = std::int64_t{config.blocks} + 1;  // the last one is padding's
    values_.assign(blocks * config.tokens_per_block, 0);
  }

  // Before the first step.
  void Observe(const BlockPool& pool, const Scheduler& scheduler, const StepCostModel& costs);

  void Launch(const ForwardBatch& batch) override;
  const StepResult& Collect() override;
  bool RunsAhead() const override { return config_.runs_ahead; }

  const WriteLaws& writes() const { return writes_; }
  const WaitLaws& waits() const { return waits_; }
  TimeLaws& times() { return times_; }

 private:
  void CheckShape(const ForwardBatch& batch) const;
  AttentionPath ExpectedPath(const Sequence& sequence, std::int64_t position) const;
  void CheckPaths(const ForwardBatch& batch) const;
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

  // The device.
  std::vector<std::uint64_t> values_;       // by slot
  std::vector<std::int32_t> block_tables_;  // [slots + 1, table_columns_]; the last is padding's
  std::int64_t padding_row_ = 0;
  std::int64_t table_columns_ = 0;
  std::vector<LogitAdjustment> adjustments_;  // rows of row_adjustments_
  std::int64_t row_adjustments_ = 0;
  std::vector<std::uint8_t> device_;  // what was uploaded
  StepInputs inputs_{};               // views of it
  HostStepOutputs outputs_;
  HostStepOutputs before_;  // of the step before, while this one runs

  // By rows, whether they select, and visible_max.
  std::map<std::tuple<std::int64_t, bool, std::int64_t>, StepShape> recorded_;
};

}  // namespace dsa::sim
