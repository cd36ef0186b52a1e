#include "server/http/openai/request_fields.h"

#include "common/json.h"
#include "server/api/errors.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

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

// Which values of a documented field are what happens anyway.
enum class Neutral : std::uint8_t { kAny, kNone, kFalse, kTrue, kOne, kEmpty, kText, kTextList };

struct Documented {
  std::string_view key;
  Neutral neutral;
};

constexpr std::array kDocumented = {
    // Of OpenAI.
    Documented{"audio", Neutral::kNone},
    Documented{"echo", Neutral::kFalse},
    Documented{"function_call", Neutral::kNone},
    Documented{"functions", Neutral::kEmpty},
    Documented{"metadata", Neutral::kAny},
    Documented{"modalities", Neutral::kTextList},
    Documented{"moderation", Neutral::kNone},
    Documented{"parallel_tool_calls", Neutral::kTrue},
    Documented{"prediction", Neutral::kNone},
    Documented{"prompt_cache_key", Neutral::kAny},
    Documented{"prompt_cache_options", Neutral::kAny},
    Documented{"prompt_cache_retention", Neutral::kAny},
    Documented{"response_format", Neutral::kText},
    Documented{"safety_identifier", Neutral::kAny},
    Documented{"service_tier", Neutral::kAny},
    Documented{"store", Neutral::kFalse},
    Documented{"suffix", Neutral::kEmpty},
    Documented{"user", Neutral::kAny},
    Documented{"verbosity", Neutral::kNone},
    Documented{"web_search_options", Neutral::kNone},
    // Of vLLM.
    Documented{"add_special_tokens", Neutral::kFalse},  // of a chat
    Documented{"allowed_token_ids", Neutral::kEmpty},
    Documented{"bad_words", Neutral::kEmpty},
    Documented{"chat_template", Neutral::kNone},
    Documented{"documents", Neutral::kEmpty},
    Documented{"early_stopping", Neutral::kFalse},
    Documented{"guided_choice", Neutral::kNone},
    Documented{"guided_decoding_backend", Neutral::kAny},
    Documented{"guided_grammar", Neutral::kNone},
    Documented{"guided_json", Neutral::kNone},
    Documented{"guided_regex", Neutral::kNone},
    Documented{"guided_whitespace_pattern", Neutral::kAny},
    Documented{"include_reasoning", Neutral::kTrue},
    Documented{"include_stop_str_in_output", Neutral::kFalse},
    Documented{"kv_transfer_params", Neutral::kNone},
    Documented{"length_penalty", Neutral::kOne},
    Documented{"logits_processors", Neutral::kEmpty},
    Documented{"media_io_kwargs", Neutral::kEmpty},
    Documented{"mm_processor_kwargs", Neutral::kEmpty},
    Documented{"prompt_embeds", Neutral::kNone},
    Documented{"prompt_logprobs", Neutral::kNone},
    Documented{"return_token_ids", Neutral::kFalse},
    Documented{"return_tokens_as_token_ids", Neutral::kFalse},
    Documented{"skip_special_tokens", Neutral::kTrue},
    Documented{"spaces_between_special_tokens", Neutral::kAny},
    Documented{"structural_tag", Neutral::kNone},
    Documented{"structured_outputs", Neutral::kNone},
    Documented{"thinking_token_budget", Neutral::kNone},
    Documented{"truncate_prompt_tokens", Neutral::kNone},
    Documented{"use_beam_search", Neutral::kFalse},
    Documented{"vllm_xargs", Neutral::kEmpty},
};

bool IsNeutral(const PythonValue& value, Neutral neutral) {
  const bool number = value.kind == Kind::kNumber;
  switch (neutral) {
    case Neutral::kAny: return true;
    case Neutral::kNone: return false;
    case Neutral::kFalse: return value.kind == Kind::kBool && value.text == "false";
    case Neutral::kTrue: return value.kind == Kind::kBool && value.text == "true";
    case Neutral::kOne: return number && NumberOf(value) == 1.0;
    case Neutral::kEmpty:
      return value.kind == Kind::kString
                 ? value.text.empty()
                 : (value.kind == Kind::kArray || value.kind == Kind::kObject) &&
                       value.items.empty();
    case Neutral::kTextList:
      return value.kind == Kind::kArray && value.items.size() == 1 &&
             value.items[0].kind == Kind::kString && value.items[0].text == "text";
    case Neutral::kText: {
      const PythonValue* type = value.Find("type");
      return type != nullptr && type->kind == Kind::kString && type->text == "text" &&
             value.keys.size() == 1;
    }
  }
  return false;
}

}  // namespace

Error NotA(std::string_view field, const PythonValue& value, std::string_view expected) {
  std::string shown = DumpPython(value);
  if (shown.size() > kShownValueBytesMax) {
    shown = fmt::format("a value of {} bytes", shown.size());
  }
  return InvalidArgument(fmt::format("{}: {} is not {}", field, OneLine(shown), expected));
}

Result<std::int64_t> IntOf(const PythonValue& value, std::string_view field) {
  std::int64_t number = 0;
  const char* end = value.text.data() + value.text.size();
  const auto parsed = std::from_chars(value.text.data(), end, number);
  if (value.kind != Kind::kNumber || parsed.ec != std::errc() || parsed.ptr != end) {
    return NotA(field, value, "an integer of 64 bits");
  }
  return number;
}

Result<float> FloatOf(const PythonValue& value, std::string_view field) {
  if (value.kind != Kind::kNumber) {
    return NotA(field, value, "a number");
  }
  return static_cast<float>(NumberOf(value));
}

Result<RequestFields> RequestFields::Parse(std::string_view body) {
  DSA_ASSIGN_OR_RETURN(PythonValue document, ParsePython(body, "body"));
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
  std::int64_t ignored = 0;
  for (std::size_t i = 0; i < document_.keys.size(); ++i) {
    const std::string& key = document_.keys[i];
    const PythonValue& value = document_.items[i];
    if (taken_.count(key) == 1 || value.kind == Kind::kNull) {
      continue;
    }
    const auto* documented = std::find_if(kDocumented.begin(), kDocumented.end(),
                                          [&](const Documented& one) { return one.key == key; });
    if (documented != kDocumented.end()) {
      if (!IsNeutral(value, documented->neutral)) {
        return NotSupportedError(key);
      }
      continue;
    }
    if (unknown == UnknownKeys::kRefused) {
      return InvalidArgument(fmt::format("{}: no such field", OneLine(key)));
    }
    ++ignored;
  }
  return ignored;
}

}  // namespace dsa
