// What the next step computes: the scheduler's decision as plain data.
#pragma once

#include "common/attention_path.h"
#include "common/ids.h"
#include "scheduler/step_cost.h"

#include <cstdint>
#include <vector>

namespace dsa {

struct StepPlan {
  // One sequence's share of the step, a run of consecutive positions.  The scheduler splits a chunk
  // where the attention path changes, so a sequence may have more than one row.
  struct Row {
    SequenceId sequence;
    std::int32_t slot;            // of the sequence in Scheduler::sequences()
    std::int64_t first_position;  // of the first token to compute
    std::int64_t tokens;          // > 0
    // Its last tokens are sampled: 1 where it reaches the end of the sequence, else 0.  Drafts will
    // make it up to 4, and StepShape::rows_per_sequence and PagedRows::group with it.
    std::int32_t samples;
    AttentionPath path;
    // Log-probabilities of the tokens behind the first so many of its tokens are reported.
    std::int32_t prompt_logprobs = 0;
  };
  // A block that the step writes, and its generation in the pool when the step was planned.
  struct Write {
    BlockId block;
    std::int64_t generation;
  };
  std::vector<Row> rows;                  // sorted by path, then by the scheduler's order
  std::vector<std::int32_t> sample_rows;  // indices of the rows with samples, ascending
  std::vector<Write> writes;              // each block once
  std::int64_t tokens = 0;                // sum over rows
  std::int64_t sequences = 0;             // distinct sequences of rows
  StepWork work;                          // of the rows
};

}  // namespace dsa
