#include "server/http/openai/generation_request.h"

#include "common/json.h"
#include "tokenizer/chat_json.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

using Kind = PythonValue::Kind;

// A choice that several fields can make, and which must be one.
class OneChoice final {
 public:
  Status Set(bool value, std::string_view field) {
    if (value_ && *value_ != value) {
      return InvalidArgument(fmt::format("{}: contradicts {}", field, field_));
    }
    value_ = value;
    field_ = field;
    return {};
  }
  bool value() const { return value_.value_or(false); }

 private:
  std::optional<bool> value_;
  std::string_view field_;
};

Result<bool> BoolOf(const PythonValue& value, std::string_view field) {
  if (value.kind != Kind::kBool) {
    return NotA(field, value, "true or false");
  }
  return value.text == "true";
}

bool IsNull(const PythonValue& value) {
  return value.kind == Kind::kNull;
}

// DeepSeek's switch.
Result<bool> ThinkingOf(const PythonValue& value) {
  const PythonValue* type = value.Find("type");
  const auto said = std::count_if(value.items.begin(), value.items.end(),
                                  [](const PythonValue& item) { return !IsNull(item); });
  const bool known = type != nullptr && type->kind == Kind::kString && said == 1 &&
                     (type->text == "enabled" || type->text == "disabled");
  if (!known) {
    return NotA("thinking", value, "{\"type\": \"enabled\"} or {\"type\": \"disabled\"}");
  }
  return type->text == "enabled";
}

// The template's.
Status TakeTemplateFields(RequestFields& fields, OneChoice& thinking) {
  const PythonValue* value = fields.Take("chat_template_kwargs");
  if (value == nullptr) {
    return {};
  }
  if (value->kind != Kind::kObject) {
    return NotA("chat_template_kwargs", *value, "an object");
  }
  for (std::size_t i = 0; i < value->keys.size(); ++i) {
    const std::string path = "chat_template_kwargs." + OneLine(value->keys[i]);
    if (IsNull(value->items[i])) {
      continue;
    }
    if (value->keys[i] != "thinking" && value->keys[i] != "enable_thinking") {
      return InvalidArgument(path + ": no such field: thinking and enable_thinking are known");
    }
    DSA_ASSIGN_OR_RETURN(const bool on, BoolOf(value->items[i], path));
    DSA_RETURN_IF_ERROR(thinking.Set(on, "chat_template_kwargs"));
  }
  return {};
}

// DeepSeek's switch, the template's, and OpenAI's scale with DeepSeek's end of it, of which this
// model knows the two ends.
Result<bool> TakeThinking(RequestFields& fields) {
  OneChoice thinking;
  if (const PythonValue* value = fields.Take("thinking"); value != nullptr) {
    DSA_ASSIGN_OR_RETURN(const bool on, ThinkingOf(*value));
    DSA_RETURN_IF_ERROR(thinking.Set(on, "thinking"));
  }
  DSA_RETURN_IF_ERROR(TakeTemplateFields(fields, thinking));
  if (const PythonValue* value = fields.Take("reasoning_effort"); value != nullptr) {
    constexpr std::array<std::string_view, 7> kEfforts = {"none", "minimal", "low", "medium",
                                                          "high", "xhigh",   "max"};
    const auto* known = std::find(kEfforts.begin(), kEfforts.end(), value->text);
    if (value->kind != Kind::kString || known == kEfforts.end()) {
      return NotA("reasoning_effort", *value,
                  "one of none, minimal, low, medium, high, xhigh, max");
    }
    DSA_RETURN_IF_ERROR(thinking.Set(value->text != "none", "reasoning_effort"));
  }
  return thinking.value();
}

// With "none" the model does not hear of the tools.
Status TakeToolChoice(RequestFields& fields, Chat& chat) {
  const PythonValue* value = fields.Take("tool_choice");
  if (value == nullptr) {
    return {};
  }
  if (value->kind == Kind::kString && value->text == "none") {
    chat.tools.clear();
    return {};
  }
  if (value->kind == Kind::kString && value->text == "auto") {
    return {};
  }
  if (value->kind == Kind::kObject || value->text == "required") {
    return Error{ErrorCode::kUnimplemented,
                 "tool_choice: a call cannot be forced: only auto and none are supported"};
  }
  return NotA("tool_choice", *value, "auto or none");
}

Status TakeStop(RequestFields& fields, Ask& ask) {
  const PythonValue* value = fields.Take("stop");
  if (value == nullptr) {
    return {};
  }
  if (value->kind == Kind::kString) {
    ask.stop = {value->text};
    return {};
  }
  if (value->kind != Kind::kArray) {
    return NotA("stop", *value, "a string or an array of strings");
  }
  for (std::size_t i = 0; i < value->items.size(); ++i) {
    if (value->items[i].kind != Kind::kString) {
      return NotA(fmt::format("stop[{}]", i), value->items[i], "a string");
    }
    ask.stop.push_back(value->items[i].text);
  }
  return {};
}

Status TakeMaxTokens(RequestFields& fields, Ask& ask, FieldNames& names) {
  DSA_ASSIGN_OR_RETURN(ask.max_tokens, fields.TakeInt("max_tokens"));
  DSA_ASSIGN_OR_RETURN(const std::optional<std::int64_t> newer,
                       fields.TakeInt("max_completion_tokens"));
  if (newer && ask.max_tokens && *newer != *ask.max_tokens) {
    return InvalidArgument("max_completion_tokens: contradicts max_tokens");
  }
  if (newer) {
    ask.max_tokens = newer;
    names.max_tokens = "max_completion_tokens";
  }
  return {};
}

Status TakeStream(RequestFields& fields, Ask& ask, AnswerForm& form) {
  DSA_ASSIGN_OR_RETURN(const std::optional<bool> stream, fields.TakeBool("stream"));
  ask.delivery = stream.value_or(false) ? Delivery::kStream : Delivery::kWhole;
  const PythonValue* options = fields.Take("stream_options");
  if (options == nullptr) {
    return {};
  }
  if (options->kind != Kind::kObject) {
    return NotA("stream_options", *options, "an object");
  }
  if (!stream.value_or(false)) {
    return InvalidArgument("stream_options: only with stream");
  }
  for (std::size_t i = 0; i < options->keys.size(); ++i) {
    const std::string& key = options->keys[i];
    const PythonValue& value = options->items[i];
    const std::string path = "stream_options." + OneLine(key);
    const bool is_usage = key == "include_usage";
    if (IsNull(value)) {
      continue;
    }
    if (!is_usage && key != "continuous_usage_stats" && key != "include_obfuscation") {
      fields.AddUnknown(path);
      continue;
    }
    DSA_ASSIGN_OR_RETURN(const bool on, BoolOf(value, path));
    if (is_usage) {
      form.include_usage = on;
    } else if (on) {
      return NotDone(path, value, "false");
    }
  }
  return {};
}

// {"ID": NUMBER}, as JSON has no other keys than strings.
Status TakeBiases(RequestFields& fields, Ask& ask) {
  const PythonValue* value = fields.Take("logit_bias");
  if (value == nullptr) {
    return {};
  }
  if (value->kind != Kind::kObject) {
    return NotA("logit_bias", *value, "an object of numbers by token id");
  }
  for (std::size_t i = 0; i < value->keys.size(); ++i) {
    PythonValue key;
    key.kind = Kind::kNumber;
    key.text = value->keys[i];
    DSA_ASSIGN_OR_RETURN(const std::int64_t id, IntOf(key, "logit_bias"));
    DSA_ASSIGN_OR_RETURN(const float add,
                         FloatOf(value->items[i], fmt::format("logit_bias[{}]", id)));
    ask.logit_bias.push_back({.id = id, .add = add});
  }
  return {};
}

Status TakeSampling(RequestFields& fields, Ask& ask) {
  DSA_ASSIGN_OR_RETURN(ask.temperature, fields.TakeFloat("temperature"));
  DSA_ASSIGN_OR_RETURN(ask.top_p, fields.TakeFloat("top_p"));
  DSA_ASSIGN_OR_RETURN(ask.min_p, fields.TakeFloat("min_p"));
  DSA_ASSIGN_OR_RETURN(ask.top_k, fields.TakeInt("top_k"));
  if (ask.top_k == -1) {
    ask.top_k = 0;  // vLLM's way to say that all are kept
  }
  DSA_ASSIGN_OR_RETURN(const std::optional<std::int64_t> seed, fields.TakeInt("seed"));
  if (seed) {
    ask.seed = static_cast<std::uint64_t>(*seed);
  }
  DSA_ASSIGN_OR_RETURN(ask.frequency_penalty, fields.TakeFloat("frequency_penalty"));
  DSA_ASSIGN_OR_RETURN(ask.presence_penalty, fields.TakeFloat("presence_penalty"));
  DSA_ASSIGN_OR_RETURN(ask.repetition_penalty, fields.TakeFloat("repetition_penalty"));
  DSA_ASSIGN_OR_RETURN(ask.n, fields.TakeInt("n"));
  DSA_ASSIGN_OR_RETURN(const std::optional<std::int64_t> best_of, fields.TakeInt("best_of"));
  if (best_of && *best_of != ask.n.value_or(1)) {
    return Error{ErrorCode::kUnimplemented, "best_of: only as many as n are supported"};
  }
  return TakeBiases(fields, ask);
}

// A number of candidates in a completion, a switch and a number in a chat.
Status TakeLogprobs(Endpoint endpoint, RequestFields& fields, Ask& ask, AnswerForm& form,
                    FieldNames& names) {
  if (endpoint == Endpoint::kChat) {
    DSA_ASSIGN_OR_RETURN(const std::optional<bool> logprobs, fields.TakeBool("logprobs"));
    ask.logprobs = logprobs.value_or(false);
    DSA_ASSIGN_OR_RETURN(ask.top_logprobs, fields.TakeInt("top_logprobs"));
    if (!ask.logprobs && ask.top_logprobs == 0) {
      ask.top_logprobs = std::nullopt;  // none of none, as vLLM's default says it
    }
    return {};
  }
  DSA_ASSIGN_OR_RETURN(ask.top_logprobs, fields.TakeInt("logprobs"));
  ask.logprobs = ask.top_logprobs.has_value();
  DSA_ASSIGN_OR_RETURN(const std::optional<bool> echo, fields.TakeBool("echo"));
  ask.echo = echo.value_or(false);
  form.echo = ask.echo;
  DSA_ASSIGN_OR_RETURN(ask.prompt_logprobs, fields.TakeInt("prompt_logprobs"));
  form.prompt_logprobs = ask.prompt_logprobs.has_value();
  if (!form.prompt_logprobs) {
    ask.prompt_logprobs = ask.echo ? ask.top_logprobs : std::nullopt;
    return {};
  }
  names.prompt_logprobs = "prompt_logprobs";
  if (ask.delivery == Delivery::kStream) {
    return InvalidArgument("prompt_logprobs: not with stream: echo with logprobs has them there");
  }
  if (ask.echo && ask.top_logprobs && *ask.prompt_logprobs != *ask.top_logprobs) {
    return InvalidArgument("prompt_logprobs: contradicts logprobs with echo");
  }
  return {};
}

Result<IdPrompt> IdsOf(const PythonValue& array, const std::string& path) {
  IdPrompt ids;
  ids.reserve(array.items.size());
  for (std::size_t i = 0; i < array.items.size(); ++i) {
    DSA_ASSIGN_OR_RETURN(const std::int64_t id,
                         IntOf(array.items[i], fmt::format("{}[{}]", path, i)));
    ids.push_back(id);
  }
  return ids;
}

// Text, as the model's tokenizer reads it: with its control tokens; or ids.
Result<Prompt> PromptFrom(const PythonValue& value, const std::string& path,
                          std::optional<bool> add_special) {
  if (value.kind == Kind::kString) {
    return Prompt(TextPrompt{.text = value.text, .parse_special = true, .add_bos = add_special});
  }
  if (value.kind != Kind::kArray) {
    return NotA(path, value, "a string or an array of token ids");
  }
  DSA_ASSIGN_OR_RETURN(IdPrompt ids, IdsOf(value, path));
  return Prompt(std::move(ids));
}

// One, or a list of them.
Status TakePrompts(RequestFields& fields, Ask& ask, FieldNames& names) {
  DSA_ASSIGN_OR_RETURN(const std::optional<bool> add_special,
                       fields.TakeBool("add_special_tokens"));
  const PythonValue* value = fields.Take("prompt");
  if (value == nullptr) {
    return InvalidArgument("prompt: missing: a string or an array of token ids");
  }
  const bool list =
      value->kind == Kind::kArray && !value->items.empty() && value->items[0].kind != Kind::kNumber;
  if (!list) {
    DSA_ASSIGN_OR_RETURN(Prompt prompt, PromptFrom(*value, "prompt", add_special));
    ask.prompts.push_back(std::move(prompt));
    return {};
  }
  DSA_RETURN_IF_ERROR(CheckAnswerCount(value->items.size(), 1, "prompt"));
  for (std::size_t i = 0; i < value->items.size(); ++i) {
    DSA_ASSIGN_OR_RETURN(Prompt prompt,
                         PromptFrom(value->items[i], fmt::format("prompt[{}]", i), add_special));
    ask.prompts.push_back(std::move(prompt));
  }
  if (ask.prompts.size() == 1) {
    names.prompt = "prompt[0]";
    names.token_ids = names.prompt;
  }
  return {};
}

// vLLM's way to say that the last message is continued, which takes both.
Status TakeContinuation(RequestFields& fields, Chat& chat) {
  DSA_ASSIGN_OR_RETURN(const std::optional<bool> continues,
                       fields.TakeBool("continue_final_message"));
  DSA_ASSIGN_OR_RETURN(const std::optional<bool> opens_turn,
                       fields.TakeBool("add_generation_prompt"));
  const bool continued = continues.value_or(false);
  if (opens_turn.value_or(!continued) == continued) {
    return InvalidArgument(
        "add_generation_prompt: must be false with continue_final_message, and true without");
  }
  if (continued && !chat.messages.empty()) {
    chat.messages.back().prefix = true;
  }
  return {};
}

// A promise that the arguments of a call fit their schema, which nothing here keeps.
Status TakeStrictness(PythonValue& document) {
  PythonValue* tools = document.Find("tools");
  const std::size_t count = tools == nullptr ? 0 : tools->items.size();
  for (std::size_t i = 0; i < count; ++i) {
    PythonValue* function = tools->items[i].Find("function");
    const PythonValue* strict = function == nullptr ? nullptr : function->Find("strict");
    if (strict == nullptr) {
      continue;
    }
    if (!IsNull(*strict) && !(strict->kind == Kind::kBool && strict->text == "false")) {
      return NotDone(fmt::format("tools[{}].function.strict", i), *strict, "false");
    }
    // The model is told the rest of the function.
    const std::ptrdiff_t index = strict - function->items.data();
    function->items.erase(function->items.begin() + index);
    function->keys.erase(function->keys.begin() + index);
  }
  return {};
}

Result<Chat> TakeConversation(RequestFields& fields) {
  fields.Take("messages");
  fields.Take("tools");
  DSA_RETURN_IF_ERROR(TakeStrictness(fields.document()));
  DSA_ASSIGN_OR_RETURN(Chat chat, ReadConversation(fields.document()));
  bool is_asked_later = false;
  for (std::size_t index = chat.messages.size(); index-- > 0;) {
    ChatRole& role = chat.messages[index].role;
    if (role == ChatRole::kDeveloper && is_asked_later) {
      role = ChatRole::kSystem;
    }
    is_asked_later = is_asked_later || role == ChatRole::kUser || role == ChatRole::kDeveloper;
  }
  return chat;
}

}  // namespace

Result<Chat> TakeChat(RequestFields& fields) {
  DSA_ASSIGN_OR_RETURN(Chat chat, TakeConversation(fields));
  DSA_ASSIGN_OR_RETURN(chat.thinking, TakeThinking(fields));
  DSA_RETURN_IF_ERROR(TakeToolChoice(fields, chat));
  DSA_RETURN_IF_ERROR(TakeContinuation(fields, chat));
  return chat;
}

FieldNames FieldNamesOf(Endpoint endpoint) {
  const bool chat = endpoint == Endpoint::kChat;
  return {.request_id = "request_id",
          .model = "model",
          .prompt = chat ? "messages" : "prompt",
          .token_ids = "prompt",
          .add_bos = "add_special_tokens",
          .chat = {.prefix = "", .tool = ".function"},
          .temperature = "temperature",
          .top_p = "top_p",
          .min_p = "min_p",
          .top_k = "top_k",
          .frequency_penalty = "frequency_penalty",
          .presence_penalty = "presence_penalty",
          .repetition_penalty = "repetition_penalty",
          .logit_bias = "logit_bias",
          .n = "n",
          .max_tokens = "max_tokens",
          .min_tokens = "min_tokens",
          .stop = "stop",
          .stop_token_ids = "stop_token_ids",
          .logprobs = "logprobs",
          .top_logprobs = chat ? "top_logprobs" : "logprobs",
          .prompt_logprobs = chat ? "" : "logprobs with echo",
          .cache_salt = "cache_salt",
          .priority = "priority"};
}

Status ReadGeneration(Endpoint endpoint, std::string_view body, UnknownKeys unknown, Ask& ask,
                      AnswerForm& form, FieldNames& names) {
  DSA_ASSIGN_OR_RETURN(RequestFields fields, RequestFields::Parse(body));
  DSA_ASSIGN_OR_RETURN(const std::optional<std::string> request_id, fields.TakeText("request_id"));
  ask.request_id = request_id.value_or("");
  DSA_ASSIGN_OR_RETURN(const std::optional<std::string> model, fields.TakeText("model"));
  ask.model = model.value_or("");
  DSA_RETURN_IF_ERROR(TakeStream(fields, ask, form));
  if (endpoint == Endpoint::kChat) {
    DSA_ASSIGN_OR_RETURN(Chat chat, TakeChat(fields));
    ask.prompts.emplace_back(std::move(chat));
  } else {
    DSA_RETURN_IF_ERROR(TakePrompts(fields, ask, names));
  }
  DSA_RETURN_IF_ERROR(TakeSampling(fields, ask));
  DSA_RETURN_IF_ERROR(TakeMaxTokens(fields, ask, names));
  DSA_ASSIGN_OR_RETURN(ask.min_tokens, fields.TakeInt("min_tokens"));
  DSA_ASSIGN_OR_RETURN(const std::optional<bool> ignore_eos, fields.TakeBool("ignore_eos"));
  ask.ignore_eos = ignore_eos.value_or(false);
  DSA_RETURN_IF_ERROR(TakeStop(fields, ask));
  DSA_ASSIGN_OR_RETURN(ask.stop_token_ids, fields.TakeInts("stop_token_ids"));
  DSA_RETURN_IF_ERROR(TakeLogprobs(endpoint, fields, ask, form, names));
  DSA_ASSIGN_OR_RETURN(const std::optional<std::string> salt, fields.TakeText("cache_salt"));
  ask.cache_salt = salt.value_or("");
  DSA_ASSIGN_OR_RETURN(const std::optional<std::int64_t> priority, fields.TakeInt("priority"));
  ask.priority = priority.value_or(0);
  DSA_ASSIGN_OR_RETURN(ask.ignored_fields, fields.CheckRest(unknown));
  return {};
}

}  // namespace dsa
