// What a client asked for, in tokens.  Immutable once submitted; progress is a Sequence's.
#pragma once

#include "common/clock.h"
#include "common/ids.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dsa {

// Added to the logit of an id.
struct LogitBias {
  TokenId id;
  float add;  // [-100, 100]
};

// How the next token is drawn.  Ranges are checked by Validate; meaning in kernels/ops/sample.h.
struct SamplingParams {
  float temperature = 1.0F;                    // [0, 2]; 0 is greedy
  float top_p = 1.0F;                          // (0, 1]
  float min_p = 0.0F;                          // [0, 1]
  std::int32_t top_k = 0;                      // [0, vocabulary]; 0 keeps all
  std::uint64_t seed = 0;                      // always set: drawn where the client gave none
  std::optional<std::int32_t> top_logprobs{};  // [0, 20]; nullopt: no log-probabilities at all
  // Of the logits before temperature; meaning in scheduler/adjusted_ids.h.
  float frequency_penalty = 0.0F;       // [-2, 2]
  float presence_penalty = 0.0F;        // [-2, 2]
  float repetition_penalty = 1.0F;      // (0, 10]
  std::vector<LogitBias> logit_bias{};  // at most kLogitBiasesMax, each id once
};

// When a sequence ends.
struct StopConditions {
  std::int64_t max_tokens = 0;  // >= 0; generated tokens; with 0 the prompt is computed, no more
  // [0, max_tokens]; before, end and stop ids are suppressed and stop strings do not end it.
  std::int64_t min_tokens = 0;
  bool ignore_end = false;                // the model's end ids do not stop, nor are suppressed
  std::vector<TokenId> stop_ids;          // end the sequence; not part of the text
  std::vector<std::string> stop_strings;  // end the text before their first byte
  std::optional<MonotonicUs> deadline_us;
};

// Which prompt positions' logits are wanted besides those that sampling needs.
enum class PromptLogits : std::uint8_t { kNone, kAll };

struct Request {
  RequestId id{};
  PromptLogits prompt_logits = PromptLogits::kNone;
  // Log-probabilities of the prompt's tokens but the first, with so many likely ones, [0, 20].
  std::optional<std::int32_t> prompt_logprobs{};
  SamplingParams sampling;
  StopConditions stop;
  std::string external_id;      // the client's or ours; at most 128 bytes; for logs and Abort
  std::vector<TokenId> prompt;  // not empty; ids below the vocabulary
  std::string cache_salt;       // requests share cached prefixes only under equal salts
  std::int32_t priority = 0;    // lower goes first under the priority policy
  // Of requests for one prompt that were submitted together (engine.h, Siblings): the id of the
  // first.  Each waits until those before it have computed what it can share with them.
  std::optional<RequestId> siblings{};
  bool billed = true;          // false: the server's own, which nobody pays for
  MonotonicUs arrival_us = 0;  // set by Engine::Submit
};

// Whether something of every row of the prompt is wanted: such a request reads no cached prefix,
// and leaves its blocks to others.
inline bool ComputesWholePrompt(const Request& request) {
  return request.prompt_logits != PromptLogits::kNone || request.prompt_logprobs.has_value();
}

// Why a sequence ended.
enum class FinishReason : std::uint8_t {
  kStop,       // an end id, stop id or stop string
  kLength,     // max_tokens or the context's end
  kCancelled,  // the client went away or asked
  kDeadline,   // its deadline passed
  kAborted,    // AdminService.Abort, or the drain limit
  kError,      // non-finite scores or logits: this request only
};

}  // namespace dsa
