// Turns a step plan into the arrays that the model reads.  Engine thread only; owns the arrays.
#pragma once

#include "model/forward_batch.h"
#include "scheduler/sequence.h"
#include "scheduler/step_plan.h"
#include "server/engine/adjustment_rows.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace dsa {

// Row counts to pad to, up to `rows_max`: a power of two, or a block's tokens more than the one
// before, so that rows of padding never outnumber the slots of a block.
std::vector<std::int64_t> RowBuckets(std::int64_t rows_max, std::int32_t tokens_per_block);

// Blocks behind the pool's that rows of padding write into, each into a slot of its own: one, or
// with several data ranks, of which one may have none of a step's rows, as many as the most rows
// take.
std::int32_t PaddingBlocks(const std::vector<std::int64_t>& row_buckets, std::int64_t data_ranks,
                           std::int32_t tokens_per_block);

// What a plan's batch is like.
struct BatchShape {
  StepShape shape;  // without padding
  std::int64_t bucket =
      0;  // the rows that it is padded to, to run as a recorded step; 0: it is not
};

// Of the batches that data ranks run together, one each: all are recorded, in one shape, or none
// is, and their rows in the exchange of experts are those of the largest.
void AgreeOnStep(std::span<BatchShape> ranks);

class BatchBuilder final {
 public:
  struct Config {
    std::int64_t step_tokens_max;
    std::int64_t sequences_max;
    std::int64_t slots_max;  // Scheduler::slots(); row slots_max of the tables is padding's
    std::int64_t context_tokens_max;  // sizes the block tables
    std::int32_t tokens_per_block;
    std::vector<TokenId> end_ids;  // the model's; suppressed before min_tokens
    std::int64_t given_rows_max;   // StepLimits::given_rows_max
    std::int64_t row_adjustments;  // StepLimits::row_adjustments
    // RowBuckets of sequences_max: steps in which every sequence decodes get as many rows as the
    // next of them; padding writes into block `padding_block` and those behind it (PaddingBlocks).
    // Empty: no step is padded.
    std::vector<std::int64_t> row_buckets;
    std::int32_t padding_block;
  };
  // Allocates everything that Build uses.
  explicit BatchBuilder(Config config);
  BatchBuilder(const BatchBuilder&) = delete;
  BatchBuilder& operator=(const BatchBuilder&) = delete;

  // `sequences` are Scheduler::sequences(), of which the plan was made.  Rows of the batch are the
  // plan's rows in order, token by token; sampling entries are its sampling rows in order.  The
  // batch carries what changed in block tables and adjustments since the last one, so every batch
  // must be run.
  // Valid until the next call.
  //
  // Behind the sampling entries of the plan's rows stand those of prompt_logprobs, row by row: they
  // report the log-probability of the token that the prompt has next.
  //
  // logit_rows are the sampled rows and, of a request with PromptLogits::kAll, every row that
  // stands in its prompt: batch.positions[logit_rows[r]] tells which.
  const ForwardBatch& Build(const StepPlan& plan,
                            std::span<const std::unique_ptr<Sequence>> sequences) {
    return Build(plan, sequences, ShapeOf(plan, sequences));
  }
  // In a shape that data ranks agreed on; the plan may be empty.
  const ForwardBatch& Build(const StepPlan& plan,
                            std::span<const std::unique_ptr<Sequence>> sequences,
                            const BatchShape& shape);
  BatchShape ShapeOf(const StepPlan& plan,
                     std::span<const std::unique_ptr<Sequence>> sequences) const;

 private:
  StepShape RowsOf(const StepPlan& plan,
                   std::span<const std::unique_ptr<Sequence>> sequences) const;
  static std::int64_t PromptLogitRows(const StepPlan::Row& row, const Sequence& sequence);
  std::int64_t BucketOf(const StepPlan& plan) const;
  void AddRow(const StepPlan::Row& row, const Sequence& sequence);
  void AddTokens(const StepPlan::Row& row, const Sequence& sequence);
  void AddLogitRows(const StepPlan::Row& row, const Sequence& sequence);
  void AddSampling(const Sequence& sequence);
  void AddGiven(const StepPlan& plan, std::span<const std::unique_ptr<Sequence>> sequences);
  void AddPadding();
  void FillTableUpdates();
  void FillBatch(const StepShape& shape);

  // What a row of the executor's block tables holds.
  struct FilledRow {
    SequenceId sequence{-1};
    std::int64_t clears = 0;  // BlockTable::clears()
    std::int64_t blocks = 0;  // the first of the sequence's
  };

  // A sequence of the batch whose block table may have grown; its ids stay until the next plan.
  struct ListedTable {
    SequenceId sequence;
    std::int32_t slot;
    std::int64_t clears;
    const std::int32_t* ids;
  };

  const Config config_;
  const std::int64_t packed_bytes_;
  std::unique_ptr<std::uint8_t[]> packed_;  // not cleared: most of it is hardly ever used
  StepInputs inputs_{};                     // of packed_, for the step that is built
  // Of the batch so far.
  std::int64_t tokens_ = 0;
  std::int64_t logit_rows_ = 0;
  std::int64_t samples_ = 0;
  std::int64_t words_ = 0;
  bool copy_logits_ = false;
  std::int64_t given_ = 0;                     // tokens whose log-probabilities are reported
  std::vector<std::int32_t> first_logit_row_;  // by row of the plan
  std::vector<ListedTable> listed_;
  std::vector<std::int64_t> blocks_of_slot_;  // blocks that its rows can see; 0: not listed

  std::vector<FilledRow> filled_;  // by slot
  AdjustmentRows adjustment_rows_;
  ForwardBatch batch_{};
};

}  // namespace dsa
