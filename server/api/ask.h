// What a client asks for, in no protocol's shape, and the one place that knows ranges and defaults.
//
//   bytes --(a protocol reads)--> Ask --Resolve--> Generation --> Engine::Submit
#pragma once

#include "common/status.h"
#include "scheduler/request.h"
#include "server/api/prompt.h"
#include "server/api/reply.h"
#include "server/api/service_context.h"
#include "tokenizer/chat_template.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace dsa {

struct TextPrompt {
  std::string text;
  bool parse_special = false;     // added tokens match in it
  std::optional<bool> add_bos{};  // absent: as the model has it
};

using IdPrompt = std::vector<std::int64_t>;
using Prompt = std::variant<Chat, TextPrompt, IdPrompt>;

// Answers of one call: n to each of its prompts.
inline constexpr std::int64_t kCallAnswersMax = 512;

enum class Delivery : std::uint8_t {
  kWhole,   // one message at the end
  kStream,  // parts as they come
};

// Added to the logit of an id.
struct AskedBias {
  std::int64_t id;
  float add;
};

// Absent is what the client did not say.  Values are as it said them: any.
struct Ask {
  std::string request_id{};       // "": one is made
  std::string model{};            // "": the one served
  std::vector<Prompt> prompts{};  // at least one; each is answered.  A chat is alone
  Delivery delivery = Delivery::kWhole;

  std::optional<float> temperature{};
  std::optional<float> top_p{};
  std::optional<float> min_p{};
  std::optional<std::int64_t> top_k{};
  std::optional<std::uint64_t> seed{};
  std::optional<float> frequency_penalty{};
  std::optional<float> presence_penalty{};
  std::optional<float> repetition_penalty{};
  std::vector<AskedBias> logit_bias{};
  std::optional<std::int64_t> n{};

  std::optional<std::int64_t> max_tokens{};
  std::optional<std::int64_t> min_tokens{};
  bool ignore_eos = false;
  std::vector<std::string> stop{};
  std::vector<std::int64_t> stop_token_ids{};

  bool report_cost = false;
  bool logprobs = false;
  std::optional<std::int64_t> top_logprobs{};
  std::optional<std::int64_t> prompt_logprobs{};
  bool echo = false;  // of a completion: its text begins with the prompt's
  std::string cache_salt{};
  std::int64_t priority = 0;

  std::int64_t ignored_fields = 0;  // that nobody knows, for the log
};

// What a protocol calls the fields of an Ask, for messages.
struct FieldNames {
  std::string_view request_id;
  std::string_view model;
  std::string_view prompt;  // the whole of it, in tokens
  std::string_view token_ids;
  std::string_view add_bos;
  ChatFieldNames chat;
  std::string_view temperature;
  std::string_view top_p;
  std::string_view min_p;
  std::string_view top_k;
  std::string_view frequency_penalty;
  std::string_view presence_penalty;
  std::string_view repetition_penalty;
  std::string_view logit_bias;
  std::string_view n;
  std::string_view max_tokens;
  std::string_view min_tokens;
  std::string_view stop;
  std::string_view stop_token_ids;
  std::string_view logprobs;
  std::string_view top_logprobs;
  std::string_view prompt_logprobs;
  std::string_view cache_salt;
  std::string_view priority;
};

// A prompt of a call, ready for the engine but for its ids, arrival and deadline.
struct ResolvedPrompt {
  Request request;
  std::string echo{};  // PromptHead::echo
};

struct Generation {
  std::vector<ResolvedPrompt> prompts;  // at least one
  std::int64_t answers = 1;             // n, to each
  ReplyFormat format;
  ReportLogprobs logprobs = ReportLogprobs::kNo;
  ReportCost cost = ReportCost::kNo;
};

// INVALID_ARGUMENT naming `field` for more answers than a call may have.
Status CheckAnswerCount(std::size_t prompts, std::int64_t answers, std::string_view field);

// Renders and encodes the prompts, checks every range, for each prompt by itself, fills what was
// not said from the model's defaults, draws the seeds.  INVALID_ARGUMENT with the protocol's own
// name of the field, and the index of a prompt of several, NOT_FOUND for another model, or
// FAILED_PRECONDITION where the model has no chat format or no tokenizer.
Result<Generation> Resolve(Ask&& ask, const FieldNames& names, const ServiceContext& context);

}  // namespace dsa
