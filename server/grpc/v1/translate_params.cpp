#include "server/grpc/v1/translate_params.h"

#include "scheduler/validate.h"
#include "server/grpc/v1/translate.h"

#include <algorithm>
#include <random>

#include <fmt/core.h>
#include <google/protobuf/descriptor.h>

namespace dsa {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr std::size_t kCacheSaltBytesMax = 256;
constexpr std::int64_t kPriorityMax = 1000;

enum class LowEnd : std::uint8_t { kIncluded, kExcluded };

struct FloatRange {
  float low;
  LowEnd low_end;
  float high;
};

// NaN lies in no range.
Status CheckFloat(std::string_view field, float value, const FloatRange& range) {
  const bool above = range.low_end == LowEnd::kIncluded ? value >= range.low : value > range.low;
  if (above && value <= range.high) {
    return {};
  }
  return InvalidArgument(fmt::format("{}: {} is not in {}{}, {}]", field, value,
                                     range.low_end == LowEnd::kIncluded ? '[' : '(', range.low,
                                     range.high));
}

Status CheckInt(std::string_view field, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) {
    return {};
  }
  return InvalidArgument(fmt::format("{}: {} is not in [{}, {}]", field, value, low, high));
}

bool IsRefused(const FieldDescriptor& field) {
  const auto& refused = RefusedFields();
  return std::find(refused.begin(), refused.end(), field.full_name()) != refused.end();
}

// Whether what a refused field says is what happens without it.
bool ChangesNothing(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  if (field.is_map()) {  // of floats that are added
    for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
      const Message& entry = reflection.GetRepeatedMessage(message, &field, i);
      const FieldDescriptor* value = entry.GetDescriptor()->map_value();
      if (entry.GetReflection()->GetFloat(entry, value) != 0.0F) {
        return false;
      }
    }
    return true;
  }
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_FLOAT: {
      const bool factor = field.name() == "repetition_penalty";
      return reflection.GetFloat(message, &field) == (factor ? 1.0F : 0.0F);
    }
    case FieldDescriptor::CPPTYPE_INT64: return reflection.GetInt64(message, &field) == 1;  // n
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      const auto* format = google::protobuf::DynamicCastToGenerated<v1::ResponseFormat>(
          &reflection.GetMessage(message, &field));
      return format != nullptr && format->type() == "text" && format->json_schema().empty();
    }
    default: return false;
  }
}

Status CheckNoRefusedFields(const Message& message, const std::string& path) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);  // those that are set
  for (const FieldDescriptor* field : fields) {
    const std::string name = path + field->name();
    if (IsRefused(*field) && ChangesNothing(message, *field)) {
      continue;
    }
    if (IsRefused(*field)) {
      return Error{ErrorCode::kUnimplemented, fmt::format("{}: not supported yet", name)};
    }
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_map()) {
      continue;
    }
    if (!field->is_repeated()) {
      DSA_RETURN_IF_ERROR(CheckNoRefusedFields(reflection.GetMessage(message, field), name + "."));
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      DSA_RETURN_IF_ERROR(CheckNoRefusedFields(reflection.GetRepeatedMessage(message, field, i),
                                               fmt::format("{}[{}].", name, i)));
    }
  }
  return {};
}

std::uint64_t DrawSeed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

Status TranslateStopStrings(const v1::StopConditions& message, StopConditions& stop) {
  if (message.stop_size() > kStopStringsMax) {
    return InvalidArgument(
        fmt::format("stop.stop: {} strings, at most {}", message.stop_size(), kStopStringsMax));
  }
  std::int64_t total = 0;
  for (int i = 0; i < message.stop_size(); ++i) {
    const auto bytes = static_cast<std::int64_t>(message.stop(i).size());
    if (bytes < 1 || bytes > kStopStringBytesMax) {
      return InvalidArgument(
          fmt::format("stop.stop[{}]: {} bytes is not in [1, {}]", i, bytes, kStopStringBytesMax));
    }
    total += bytes;
    stop.stop_strings.push_back(message.stop(i));
  }
  if (total > kStopStringBytesTotalMax) {
    return InvalidArgument(
        fmt::format("stop.stop: {} bytes together, at most {}", total, kStopStringBytesTotalMax));
  }
  return {};
}

}  // namespace

const std::vector<std::string_view>& RefusedFields() {
  static const std::vector<std::string_view> fields = {
      "dsa.v1.SamplingParams.frequency_penalty",
      "dsa.v1.SamplingParams.presence_penalty",
      "dsa.v1.SamplingParams.repetition_penalty",
      "dsa.v1.SamplingParams.logit_bias",
      "dsa.v1.SamplingParams.n",
      "dsa.v1.Message.prefix",
      "dsa.v1.ChatRequest.response_format",
      "dsa.v1.CompletionRequest.response_format",
  };
  return fields;
}

Status CheckNoRefusedFields(const Message& message) {
  return CheckNoRefusedFields(message, "");
}

Result<SamplingParams> TranslateSampling(const v1::SamplingParams& message,
                                         const ServiceContext& context) {
  const ServedModel& model = context.model;
  const float temperature = message.has_temperature() ? message.temperature() : model.temperature;
  const float top_p = message.has_top_p() ? message.top_p() : model.top_p;
  const float min_p = message.has_min_p() ? message.min_p() : model.min_p;
  const std::int64_t top_k = message.has_top_k() ? message.top_k() : model.top_k;
  DSA_RETURN_IF_ERROR(
      CheckFloat("sampling.temperature", temperature, {0.0F, LowEnd::kIncluded, 2.0F}));
  DSA_RETURN_IF_ERROR(CheckFloat("sampling.top_p", top_p, {0.0F, LowEnd::kExcluded, 1.0F}));
  DSA_RETURN_IF_ERROR(CheckFloat("sampling.min_p", min_p, {0.0F, LowEnd::kIncluded, 1.0F}));
  DSA_RETURN_IF_ERROR(CheckInt("sampling.top_k", top_k, 0, model.vocabulary));
  return SamplingParams{.temperature = temperature,
                        .top_p = top_p,
                        .min_p = min_p,
                        .top_k = static_cast<std::int32_t>(top_k),
                        .seed = message.has_seed() ? message.seed() : DrawSeed(),
                        .top_logprobs = std::nullopt};
}

Result<StopConditions> TranslateStop(const v1::StopConditions& message, std::int64_t prompt_tokens,
                                     const ServiceContext& context) {
  const std::int64_t context_length = context.model.context_length;
  const std::int64_t left = context_length - prompt_tokens;
  if (left < 1) {
    return InvalidArgument(
        fmt::format("prompt: {} tokens, at most {}: the context has {} and an answer needs 1",
                    prompt_tokens, context_length - 1, context_length));
  }
  StopConditions stop;
  stop.max_tokens = message.has_max_tokens() ? message.max_tokens()
                                             : std::min(left, context.model.max_tokens_default);
  if (stop.max_tokens < 1 || stop.max_tokens > left) {
    return InvalidArgument(
        fmt::format("stop.max_tokens: {} is not in [1, {}]: the context has {} and the prompt {}",
                    stop.max_tokens, left, context_length, prompt_tokens));
  }
  stop.min_tokens = message.has_min_tokens() ? message.min_tokens() : 0;
  DSA_RETURN_IF_ERROR(CheckInt("stop.min_tokens", stop.min_tokens, 0, stop.max_tokens));
  stop.ignore_end = message.ignore_eos();
  if (message.stop_token_ids_size() > kStopIdsMax) {
    return InvalidArgument(fmt::format("stop.stop_token_ids: {} ids, at most {}",
                                       message.stop_token_ids_size(), kStopIdsMax));
  }
  DSA_ASSIGN_OR_RETURN(stop.stop_ids,
                       ToTokenIds(message.stop_token_ids(), "stop.stop_token_ids", context));
  DSA_RETURN_IF_ERROR(TranslateStopStrings(message, stop));
  return stop;
}

Status TranslateCommon(const CommonFields& fields, Request& request) {
  if (fields.top_logprobs) {
    DSA_RETURN_IF_ERROR(CheckInt("top_logprobs", *fields.top_logprobs, 0, kTopLogprobsLimit));
    if (!fields.logprobs) {
      return InvalidArgument(fmt::format("top_logprobs: {} needs logprobs", *fields.top_logprobs));
    }
  }
  if (fields.logprobs) {
    request.sampling.top_logprobs = static_cast<std::int32_t>(fields.top_logprobs.value_or(0));
  }
  if (fields.cache_salt.size() > kCacheSaltBytesMax) {
    return InvalidArgument(fmt::format("cache_salt: {} bytes, at most {}", fields.cache_salt.size(),
                                       kCacheSaltBytesMax));
  }
  request.cache_salt = std::string(fields.cache_salt);
  DSA_RETURN_IF_ERROR(CheckInt("priority", fields.priority, -kPriorityMax, kPriorityMax));
  request.priority = static_cast<std::int32_t>(fields.priority);
  return {};
}

}  // namespace dsa
