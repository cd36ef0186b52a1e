#include "server/http/openai/request_fields.h"

#include "common/json.h"
#include "server/api/errors.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <system_error>

#include <fmt/core.h>

namespace dsa {
namespace {

using Kind = PythonValue::Kind;

constexpr std::size_t kShownValueBytesMax = 64;

double NumberOf(const PythonValue& value) {
  double number = std::nan("");
  std::from_chars(value.text.data(), value.text.data() + value.text.size(), number);
  return number;
}

// What a documented field that nobody took may say, as Python writes it: what happens anyway.
struct Documented {
  std::string_view key;
  std::string_view allowed;  // several with " or " between
};

constexpr std::string_view kAnything = "anything";
constexpr std::string_view kNothing = "null";
constexpr std::string_view kFalse = "false";
constexpr std::string_view kTrue = "true";
constexpr std::string_view kEmpty = R"("" or [] or {})";

constexpr std::array kDocumented = {
    // Of OpenAI.
    Documented{"audio", kNothing},
    Documented{"echo", kFalse},
    Documented{"function_call", R"("none" or "auto")"},
    Documented{"functions", kEmpty},
    Documented{"metadata", kAnything},
    Documented{"modalities", R"(["text"])"},
    Documented{"moderation", kNothing},
    Documented{"parallel_tool_calls", kTrue},
    Documented{"prediction", kNothing},
    Documented{"prompt_cache_key", kAnything},
    Documented{"prompt_cache_options", kAnything},
    Documented{"prompt_cache_retention", kAnything},
    Documented{"response_format", R"({"type": "text"})"},
    Documented{"safety_identifier", kAnything},
    Documented{"service_tier", kAnything},
    Documented{"store", kFalse},
    Documented{"suffix", kEmpty},
    Documented{"user", kAnything},
    Documented{"verbosity", R"("medium")"},
    Documented{"web_search_options", kNothing},
    // Of vLLM.
    Documented{"add_special_tokens", kFalse},  // of a chat
    Documented{"allowed_token_ids", kEmpty},
    Documented{"bad_words", kEmpty},
    Documented{"chat_template", kNothing},
    Documented{"documents", kEmpty},
    Documented{"early_stopping", kFalse},
    Documented{"ec_transfer_params", kNothing},
    Documented{"guided_choice", kNothing},
    Documented{"guided_decoding_backend", kAnything},
    Documented{"guided_grammar", kNothing},
    Documented{"guided_json", kNothing},
    Documented{"guided_regex", kNothing},
    Documented{"guided_whitespace_pattern", kAnything},
    Documented{"include_reasoning", kTrue},
    Documented{"include_stop_str_in_output", kFalse},
    Documented{"kv_transfer_params", kNothing},
    Documented{"length_penalty", "1 or 1.0"},
    Documented{"logits_processors", kEmpty},
    Documented{"logprob_token_ids", kEmpty},
    Documented{"media_io_kwargs", kEmpty},
    Documented{"mm_processor_kwargs", kEmpty},
    Documented{"prompt_embeds", kNothing},
    Documented{"prompt_logprobs", kNothing},
    Documented{"repetition_detection", kNothing},
    Documented{"return_mm_kwargs", kAnything},  // of another endpoint's answer
    Documented{"return_prompt_text", kFalse},
    Documented{"return_token_ids", kFalse},
    Documented{"return_token_offsets", kAnything},  // of another endpoint's answer
    Documented{"return_token_strs", kFalse},        // but of /tokenize
    Documented{"return_tokens_as_token_ids", kFalse},
    Documented{"routed_experts_prompt_start", kAnything},  // of what no answer has
    Documented{"session_id", kAnything},
    Documented{"skip_special_tokens", kTrue},
    Documented{"spaces_between_special_tokens", kAnything},
    Documented{"stream_interval", "1"},
    Documented{"structural_tag", kNothing},
    Documented{"structured_outputs", kNothing},
    Documented{"thinking_token_budget", "-1"},
    Documented{"truncate_prompt_tokens", kNothing},
    Documented{"truncation_side", kAnything},  // of what is not truncated
    Documented{"use_beam_search", kFalse},
    Documented{"vllm_xargs", kEmpty},
    Documented{"watermarking", kFalse},
    // Of a chat, where there is none, and of a completion, where there is one.
    Documented{"add_generation_prompt", kTrue},
    Documented{"chat_template_kwargs", kEmpty},
    Documented{"continue_final_message", kFalse},
    Documented{"messages", kEmpty},
    Documented{"prompt", kEmpty},
    Documented{"reasoning_effort", R"("none")"},
    Documented{"thinking", R"({"type": "disabled"})"},
    Documented{"tool_choice", R"("none" or "auto")"},
    Documented{"tools", kEmpty},
    Documented{"top_logprobs", "0"},
};

bool IsAllowed(std::string_view value, std::string_view allowed) {
  constexpr std::string_view kOr = " or ";
  while (true) {
    const std::size_t end = allowed.find(kOr);
    if (value == allowed.substr(0, end)) {
      return true;
    }
    if (end == std::string_view::npos) {
      return false;
    }
    allowed.remove_prefix(end + kOr.size());
  }
}

// A value for a message, unless it is long.
std::string Shown(const PythonValue& value) {
  std::string shown = DumpPython(value);
  return shown.size() > kShownValueBytesMax ? fmt::format("a value of {} bytes", shown.size())
                                            : OneLine(shown);
}

}  // namespace

Error NotA(std::string_view field, const PythonValue& value, std::string_view expected) {
  return InvalidArgument(fmt::format("{}: {} is not {}", field, Shown(value), expected));
}

Error NotDone(std::string_view field, const PythonValue& value, std::string_view allowed) {
  return {ErrorCode::kUnimplemented,
          fmt::format("{}: not supported yet: {} is not {}", field, Shown(value), allowed)};
}

Result<std::int64_t> IntOf(const PythonValue& value, std::string_view field) {
  constexpr double kExactMax = 9007199254740992.0;  // 2^53: each integer up to it is a double
  std::int64_t number = 0;
  const char* end = value.text.data() + value.text.size();
  const auto parsed = std::from_chars(value.text.data(), end, number);
  if (value.kind == Kind::kNumber && parsed.ec == std::errc() && parsed.ptr == end) {
    return number;
  }
  // Languages whose numbers are all doubles write 16.0.
  const double real = value.kind == Kind::kNumber ? NumberOf(value) : std::nan("");
  if (std::trunc(real) == real && std::abs(real) <= kExactMax) {
    return static_cast<std::int64_t>(real);
  }
  return NotA(field, value, "an integer of 64 bits");
}

Result<float> FloatOf(const PythonValue& value, std::string_view field) {
  if (value.kind != Kind::kNumber) {
    return NotA(field, value, "a number");
  }
  return static_cast<float>(NumberOf(value));
}

Result<RequestFields> RequestFields::Parse(std::string_view body) {
  DSA_ASSIGN_OR_RETURN(PythonValue document, ParsePythonDocument(body, "body"));
  if (document.kind != Kind::kObject) {
    return InvalidArgument("body: not a JSON object");
  }
  return RequestFields(std::move(document));
}

const PythonValue* RequestFields::Take(std::string_view key) {
  taken_.emplace(key);
  const PythonValue* value = document_.Find(key);
  return value == nullptr || value->kind == Kind::kNull ? nullptr : value;
}

Result<std::optional<bool>> RequestFields::TakeBool(std::string_view key) {
  const PythonValue* value = Take(key);
  if (value == nullptr) {
    return std::optional<bool>();
  }
  if (value->kind != Kind::kBool) {
    return NotA(key, *value, "true or false");
  }
  return std::optional<bool>(value->text == "true");
}

Result<std::optional<std::int64_t>> RequestFields::TakeInt(std::string_view key) {
  const PythonValue* value = Take(key);
  if (value == nullptr) {
    return std::optional<std::int64_t>();
  }
  DSA_ASSIGN_OR_RETURN(const std::int64_t number, IntOf(*value, key));
  return std::optional<std::int64_t>(number);
}

Result<std::optional<float>> RequestFields::TakeFloat(std::string_view key) {
  const PythonValue* value = Take(key);
  if (value == nullptr) {
    return std::optional<float>();
  }
  DSA_ASSIGN_OR_RETURN(const float number, FloatOf(*value, key));
  return std::optional<float>(number);
}

Result<std::optional<std::string>> RequestFields::TakeText(std::string_view key) {
  const PythonValue* value = Take(key);
  if (value == nullptr) {
    return std::optional<std::string>();
  }
  if (value->kind != Kind::kString) {
    return NotA(key, *value, "a string");
  }
  return std::optional<std::string>(value->text);
}

Result<std::vector<std::int64_t>> RequestFields::TakeInts(std::string_view key) {
  std::vector<std::int64_t> numbers;
  const PythonValue* value = Take(key);
  if (value == nullptr) {
    return numbers;
  }
  if (value->kind != Kind::kArray) {
    return NotA(key, *value, "an array of integers");
  }
  numbers.reserve(value->items.size());
  for (std::size_t i = 0; i < value->items.size(); ++i) {
    DSA_ASSIGN_OR_RETURN(const std::int64_t number,
                         IntOf(value->items[i], fmt::format("{}[{}]", key, i)));
    numbers.push_back(number);
  }
  return numbers;
}

Result<std::int64_t> RequestFields::CheckRest(UnknownKeys unknown) const {
  std::vector<std::string> unknown_paths = unknown_inside_;
  for (std::size_t i = 0; i < document_.keys.size(); ++i) {
    const std::string& key = document_.keys[i];
    const PythonValue& value = document_.items[i];
    if (taken_.count(key) == 1 || value.kind == Kind::kNull) {
      continue;
    }
    const auto* documented = std::find_if(kDocumented.begin(), kDocumented.end(),
                                          [&](const Documented& one) { return one.key == key; });
    if (documented != kDocumented.end()) {
      const std::string_view allowed = documented->allowed;
      if (allowed != kAnything && !IsAllowed(DumpPython(value), allowed)) {
        return NotDone(key, value, allowed);
      }
      continue;
    }
    unknown_paths.push_back(OneLine(key));
  }
  if (unknown == UnknownKeys::kRefused && !unknown_paths.empty()) {
    return InvalidArgument(fmt::format("{}: no such field", unknown_paths.front()));
  }
  return static_cast<std::int64_t>(unknown_paths.size());
}

}  // namespace dsa
