// What every service knows: the engine, the model served, the server's limits.  Made by the
// composition root before the first request, outlives the servers.
#pragma once

#include "common/clock.h"
#include "server/api/answer_budget.h"
#include "server/api/open_calls.h"
#include "server/api/request_ids.h"
#include "server/api/text_workers.h"
#include "server/engine/engine.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dsa {

// With every answer and error: which server it comes from, and that it is still the same one.
inline constexpr const char* kInstanceHeader = "x-dsa-instance";

// The model as requests see it.
struct ServedModel {
  std::string id;
  std::string model_type;
  std::int64_t context_length = 0;  // prompt and answer together; enforced
  std::int32_t vocabulary = 0;      // ids are in [0, vocabulary)
  std::int64_t layers = 0;
  std::int64_t index_topk = 0;
  std::int64_t masked_mha_until = 0;  // as configured or measured
  std::vector<TokenId> end_ids;
  std::optional<ChatFormat> chat_format;  // nullopt: chat is refused
  std::string chat_format_reason;         // why it is this one, or none
  std::optional<TokenId> bos;
  bool add_bos = false;  // completion texts begin with bos unless told otherwise
  // Paths of what a router needs to do the tokenizer's and the chat format's work.
  std::vector<std::string> tokenizer_files;
  std::int64_t max_tokens_default = 0;  // where a request names no max_tokens; > 0
  float temperature = 1.0F;             // generation_config.json's defaults
  float top_p = 1.0F;
  std::int32_t top_k = 0;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
};

// What the server says of itself.
struct ServerDescription {
  std::string instance = MakeInstanceId();  // new at every start
  std::string version;
  std::string device;
  std::string configuration_json;
  std::int64_t price_per_hour_cents = 0;  // of the device; 0: none
  MonotonicUs ready_us = 0;
};

// Written at once, each takes half a kilobyte on its way to JSON.
inline constexpr std::int64_t kReplyLogprobsMax = std::int64_t{1} << 17;

// Of log-probabilities of prompts, of all requests together, from when they are accepted: two of
// the largest, or 70 of 4,000 tokens with two candidates each.
inline constexpr std::int64_t kPromptLogprobBytesMax = std::int64_t{16} << 20;

// What replies may cost that are not written yet, whole ones and those of clients that do not
// read, and when a client that waits is told that it is not forgotten.
struct SlowClientLimits {
  std::int64_t pending_bytes_max = std::int64_t{1} << 20;  // text and ids waiting to be written
  std::int64_t stalled_us_max = 30'000'000;                // one write in flight, of any size
  std::int64_t answer_bytes_max = kAnswerBytesMax;         // of all short calls together
  std::int64_t silent_us_max = 10'000'000;                 // of a stream without a message
  std::int64_t held_bytes_max = std::int64_t{512} << 20;   // of all generation calls together
  std::int64_t logprobs_max = kReplyLogprobsMax;           // candidates included, of a whole reply
  std::int64_t prompt_logprob_bytes_max = kPromptLogprobBytesMax;
};

// Constant after construction, but for `draining` and what follows it.
struct ServiceContext {
  Engine& engine;
  const Clock& clock;
  const Tokenizer* tokenizer;  // null: ids only
  ServedModel model;
  ServerDescription server;
  SlowClientLimits slow_client;
  std::atomic<bool> draining{false};  // a hint: the engine decides
  AnswerBudget answers{};             // of short calls
  // Of generation calls, which the engine may hold for longer.
  std::shared_ptr<AnswerBudget> prompt_logprobs = std::make_shared<AnswerBudget>();
  std::atomic<std::int64_t> held_bytes{0};  // of generation calls; a count that orders nothing
  RequestIds request_ids;
  OpenCalls open_calls;
  TextWorkers workers;
};

}  // namespace dsa
