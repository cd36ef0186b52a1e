// What the next step computes: the scheduler's decision as plain data.
#pragma once

#include "common/attention_path.h"
#include "common/ids.h"

#include <cstdint>
#include <vector>

namespace dsa {

struct StepPlan {
  // One sequence's share of the step, a run of consecutive positions.  The scheduler splits a chunk
  // where the attention path changes, so a sequence may have more than one row.
  struct Row {
    SequenceId sequence;
    std::int64_t first_position;  // of the first token to compute
    std::int64_t tokens;          // > 0
    bool sample;                  // the row reaches the end of the sequence: draw the next token
    AttentionPath path;
  };
  std::vector<Row> rows;  // sorted by path, then by admission order
};

}  // namespace dsa
