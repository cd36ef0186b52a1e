// The numbers that the scheduler decides by.  Constant after start.
#pragma once

#include "common/status.h"

#include <cstdint>

namespace dsa {

enum class SchedulingPolicyKind : std::uint8_t {
  kFirstCome,  // by arrival
  kPriority,   // by Request::priority, lower first; then by arrival
};

// How many blocks a sequence must get before it starts.
enum class ReservationMode : std::uint8_t {
  kPrompt,  // what its tokens need now; decoding takes more, preempting the last in order
  kFull,    // what it can ever need: nothing is preempted
};

// What decides a row's AttentionPath beside its position.
enum class AttentionMode : std::uint8_t {
  kSparse,  // dense up to index_topk visible keys, the selection beyond
  kDense,   // never a selection: by configuration, or a model without an indexer
};

struct SchedulerConfig {
  std::int64_t step_tokens_max = 2048;  // >= sequences_max: every running sequence can advance
  // What a step may take while something decodes, by the cost model, and four times as much where
  // nothing does.  0: steps are bounded by their tokens alone.
  std::int64_t step_time_target_us = 0;
  std::int64_t sequences_max = 256;     // running at once; > 0
  std::int64_t waiting_max = 512;       // waiting, not running; > 0
  std::int64_t context_tokens_max = 0;  // prompt and generated tokens of one sequence; > 1
  SchedulingPolicyKind policy = SchedulingPolicyKind::kFirstCome;
  ReservationMode reservation = ReservationMode::kPrompt;
  std::int32_t preemptions_max = 4;  // after so many a sequence runs with its full reservation
  // Rows of a step whose log-probabilities are reported of prompts: so many logits are held beside
  // those of sequences.  0: requests for them are refused.
  std::int64_t prompt_logprob_rows_max = 0;
  AttentionMode attention = AttentionMode::kSparse;
  std::int64_t index_topk = 0;        // > 0 under kSparse
  std::int64_t masked_mha_until = 0;  // prompt positions below may take a masked path; 0: none
  // ... where a sequence has so many of them to compute when it first runs, > 0.  Expanding a key
  // costs as much as 171 rows of 128 values a head save by it (131,072 against 768 products).
  std::int64_t masked_rows_min = 192;
};

// INVALID_ARGUMENT naming the field, its value and what is allowed.
Status Validate(const SchedulerConfig& config);

}  // namespace dsa
