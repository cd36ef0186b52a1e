// Turns a step plan into the arrays that the model reads.  Engine thread only; owns the arrays.
#pragma once

#include "model/forward_batch.h"
#include "scheduler/sequence.h"
#include "scheduler/step_plan.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace dsa {

class BatchBuilder final {
 public:
  struct Config {
    std::int64_t step_tokens_max;
    std::int64_t sequences_max;
    std::int64_t slots_max;           // Scheduler::slots()
    std::int64_t context_tokens_max;  // sizes the block tables
    std::int32_t tokens_per_block;
    std::vector<TokenId> end_ids;  // the model's; suppressed before min_tokens
  };
  // Allocates everything that Build uses.
  explicit BatchBuilder(Config config);
  BatchBuilder(const BatchBuilder&) = delete;
  BatchBuilder& operator=(const BatchBuilder&) = delete;

  // `sequences` are Scheduler::sequences(), of which the plan was made.  Rows of the batch are the
  // plan's rows in order, token by token; sampling entries are its sampling rows in order.  Block
  // tables hold -1 beyond a sequence's last block.  Valid until the next call.
  //
  // logit_rows are the sampled rows and, of a request with PromptLogits::kAll, every row that
  // stands in its prompt: batch.positions[logit_rows[r]] tells which.
  const ForwardBatch& Build(const StepPlan& plan,
                            std::span<const std::unique_ptr<Sequence>> sequences);

 private:
  void AddRow(const StepPlan::Row& row, const Sequence& sequence);
  void AddTokens(const StepPlan::Row& row, const Sequence& sequence);
  void AddLogitRows(const StepPlan::Row& row, const Sequence& sequence);
  void AddSampling(const Sequence& sequence);
  std::int32_t SequenceIndex(const Sequence& sequence);
  std::int64_t FillBlockTables(std::span<const std::unique_ptr<Sequence>> sequences);

  // What a row of block_tables_ holds.
  struct FilledRow {
    SequenceId sequence{-1};
    std::int64_t changes = 0;  // BlockTable::changes()
    std::int64_t blocks = 0;   // the rest of the row is -1
    friend bool operator==(const FilledRow&, const FilledRow&) = default;
  };

  const Config config_;
  std::int64_t tokens_ = 0;  // of the batch so far
  std::vector<std::int32_t> token_ids_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int64_t> slots_;
  std::vector<std::int32_t> sequences_;
  std::vector<std::int32_t> block_tables_;  // kept from step to step: few rows change
  std::vector<FilledRow> filled_rows_;
  std::int64_t filled_stride_ = 0;
  std::vector<AttentionRun> runs_;
  std::vector<std::int32_t> logit_rows_;
  std::vector<std::int32_t> sample_rows_;
  std::vector<SamplingRow> sampling_;
  std::vector<LogitAdjustment> adjustments_;
  // Which sequence of the batch a slot is, and back; -1 where it is not in the batch.
  std::vector<std::int32_t> index_of_slot_;
  std::vector<std::int32_t> slot_of_index_;
  std::vector<std::int64_t> blocks_of_index_;  // blocks that its rows can see
  bool copy_logits_ = false;
  ForwardBatch batch_{};
};

}  // namespace dsa
