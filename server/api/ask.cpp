#include "server/api/ask.h"

#include "common/check.h"
#include "scheduler/validate.h"

#include <algorithm>
#include <random>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr float kTemperatureMax = 2.0F;
constexpr std::size_t kCacheSaltBytesMax = 256;
constexpr std::int64_t kPriorityMax = 1000;
constexpr std::int64_t kAnswersMax = 16;

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

std::uint64_t DrawSeed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

// None where only the prompt itself is asked about.
std::int64_t AnswerTokensMin(const Ask& ask) {
  return ask.max_tokens == 0 && (ask.echo || ask.prompt_logprobs) ? 0 : 1;
}

Result<std::vector<TokenId>> EncodeText(const TextPrompt& prompt, std::int64_t answer_tokens_min,
                                        const FieldNames& names, const ServiceContext& context) {
  DSA_RETURN_IF_ERROR(NeedTokenizer(context));
  std::vector<TokenId> ids;
  if (prompt.add_bos.value_or(context.model.add_bos)) {
    if (!context.model.bos) {
      return InvalidArgument(
          fmt::format("{}: the model has no begin-of-sentence id", names.add_bos));
    }
    ids.push_back(*context.model.bos);
  }
  const TextRange all{.begin = 0, .end = prompt.text.size()};
  DSA_ASSIGN_OR_RETURN(const std::vector<TokenId> text,
                       EncodePrompt(prompt.text, {&all, prompt.parse_special ? 1U : 0U},
                                    answer_tokens_min, names.prompt, context));
  ids.insert(ids.end(), text.begin(), text.end());
  return ids;
}

Result<std::vector<TokenId>> ResolvePrompt(const Prompt& asked, const Ask& ask,
                                           const FieldNames& names, const ServiceContext& context) {
  if (const Chat* chat = std::get_if<Chat>(&asked)) {
    DSA_ASSIGN_OR_RETURN(const RenderedPrompt rendered, RenderPrompt(*chat, names.chat, context));
    return EncodePrompt(rendered.text, rendered.template_ranges, AnswerTokensMin(ask), names.prompt,
                        context);
  }
  std::vector<TokenId> prompt;
  if (const TextPrompt* text = std::get_if<TextPrompt>(&asked)) {
    DSA_ASSIGN_OR_RETURN(prompt, EncodeText(*text, AnswerTokensMin(ask), names, context));
  } else {
    DSA_ASSIGN_OR_RETURN(prompt, ToTokenIds(std::get<IdPrompt>(asked), names.token_ids, context));
  }
  if (prompt.empty()) {
    return InvalidArgument(fmt::format("{}: empty: at least one token", names.prompt));
  }
  return prompt;
}

// In the order of their ids; those of 0 are left out.
Result<std::vector<LogitBias>> ResolveBiases(const std::vector<AskedBias>& asked,
                                             std::string_view field, std::int32_t vocabulary) {
  std::vector<LogitBias> biases;
  for (const AskedBias& bias : asked) {
    if (bias.id < 0 || bias.id >= vocabulary) {
      return InvalidArgument(
          fmt::format("{}: id {} is not in [0, {})", field, bias.id, vocabulary));
    }
    DSA_RETURN_IF_ERROR(CheckFloat(fmt::format("{}[{}]", field, bias.id), bias.add,
                                   {-kLogitBiasMax, LowEnd::kIncluded, kLogitBiasMax}));
    if (bias.add != 0.0F) {
      biases.push_back({.id = TokenId{static_cast<std::int32_t>(bias.id)}, .add = bias.add});
    }
  }
  const auto count = static_cast<std::int64_t>(biases.size());
  if (count > kLogitBiasesMax) {
    return InvalidArgument(fmt::format("{}: {} ids, at most {}", field, count, kLogitBiasesMax));
  }
  std::sort(biases.begin(), biases.end(),
            [](const LogitBias& a, const LogitBias& b) { return a.id < b.id; });
  const auto twice =
      std::adjacent_find(biases.begin(), biases.end(),
                         [](const LogitBias& a, const LogitBias& b) { return a.id == b.id; });
  if (twice != biases.end()) {
    return InvalidArgument(fmt::format("{}: id {} is named twice", field, Value(twice->id)));
  }
  return biases;
}

// What changes logits before temperature.
Status ResolveAdjustments(const Ask& ask, const FieldNames& names, const ServedModel& model,
                          SamplingParams& sampling) {
  sampling.frequency_penalty = ask.frequency_penalty.value_or(0.0F);
  sampling.presence_penalty = ask.presence_penalty.value_or(0.0F);
  sampling.repetition_penalty = ask.repetition_penalty.value_or(model.repetition_penalty);
  const FloatRange penalty{-kPenaltyMax, LowEnd::kIncluded, kPenaltyMax};
  DSA_RETURN_IF_ERROR(CheckFloat(names.frequency_penalty, sampling.frequency_penalty, penalty));
  DSA_RETURN_IF_ERROR(CheckFloat(names.presence_penalty, sampling.presence_penalty, penalty));
  DSA_RETURN_IF_ERROR(CheckFloat(names.repetition_penalty, sampling.repetition_penalty,
                                 {0.0F, LowEnd::kExcluded, kRepetitionPenaltyMax}));
  DSA_ASSIGN_OR_RETURN(sampling.logit_bias,
                       ResolveBiases(ask.logit_bias, names.logit_bias, model.vocabulary));
  return {};
}

Result<SamplingParams> ResolveSampling(const Ask& ask, const FieldNames& names,
                                       const ServedModel& model) {
  const float temperature = ask.temperature.value_or(model.temperature);
  const float top_p = ask.top_p.value_or(model.top_p);
  const float min_p = ask.min_p.value_or(model.min_p);
  const std::int64_t top_k = ask.top_k.value_or(model.top_k);
  DSA_RETURN_IF_ERROR(
      CheckFloat(names.temperature, temperature, {0.0F, LowEnd::kIncluded, kTemperatureMax}));
  DSA_RETURN_IF_ERROR(CheckFloat(names.top_p, top_p, {0.0F, LowEnd::kExcluded, 1.0F}));
  DSA_RETURN_IF_ERROR(CheckFloat(names.min_p, min_p, {0.0F, LowEnd::kIncluded, 1.0F}));
  DSA_RETURN_IF_ERROR(CheckInt(names.top_k, top_k, 0, model.vocabulary));
  SamplingParams sampling{.temperature = temperature,
                          .top_p = top_p,
                          .min_p = min_p,
                          .top_k = static_cast<std::int32_t>(top_k),
                          .seed = ask.seed ? *ask.seed : DrawSeed()};
  DSA_RETURN_IF_ERROR(ResolveAdjustments(ask, names, model, sampling));
  return sampling;
}

Status CheckStopStrings(const std::vector<std::string>& strings, std::string_view field) {
  const auto count = static_cast<std::int64_t>(strings.size());
  if (count > kStopStringsMax) {
    return InvalidArgument(
        fmt::format("{}: {} strings, at most {}", field, count, kStopStringsMax));
  }
  std::int64_t total = 0;
  for (std::size_t i = 0; i < strings.size(); ++i) {
    const auto bytes = static_cast<std::int64_t>(strings[i].size());
    if (bytes < 1 || bytes > kStopStringBytesMax) {
      return InvalidArgument(
          fmt::format("{}[{}]: {} bytes is not in [1, {}]", field, i, bytes, kStopStringBytesMax));
    }
    total += bytes;
  }
  if (total > kStopStringBytesTotalMax) {
    return InvalidArgument(
        fmt::format("{}: {} bytes together, at most {}", field, total, kStopStringBytesTotalMax));
  }
  return {};
}

// What max_tokens may be: none where something is asked of the prompt itself.
Result<std::int64_t> ResolveMaxTokens(const Ask& ask, std::int64_t prompt_tokens,
                                      const FieldNames& names, const ServiceContext& context) {
  const std::int64_t context_length = context.model.context_length;
  const std::int64_t left = context_length - prompt_tokens;
  const std::int64_t answer_min = AnswerTokensMin(ask);
  if (left < answer_min) {
    return InvalidArgument(fmt::format("{}: {} tokens, at most {}: the context has {}{}",
                                       names.prompt, prompt_tokens, context_length - answer_min,
                                       context_length,
                                       answer_min > 0 ? " and an answer needs 1" : ""));
  }
  const std::int64_t max_tokens =
      ask.max_tokens.value_or(std::min(left, context.model.max_tokens_default));
  const std::int64_t low = ask.echo || ask.prompt_logprobs ? 0 : 1;
  if (max_tokens < low || max_tokens > left) {
    return InvalidArgument(fmt::format("{}: {} is not in [{}, {}]: the context has {} and {} {}",
                                       names.max_tokens, max_tokens, low, left, context_length,
                                       ask.prompts.size() == 1 ? "the prompt" : names.prompt,
                                       prompt_tokens));
  }
  return max_tokens;
}

// `prompt_tokens` > 0 and what the context leaves decide max_tokens.
Result<StopConditions> ResolveStop(const Ask& ask, std::int64_t prompt_tokens,
                                   const FieldNames& names, const ServiceContext& context) {
  StopConditions stop;
  DSA_ASSIGN_OR_RETURN(stop.max_tokens, ResolveMaxTokens(ask, prompt_tokens, names, context));
  stop.min_tokens = ask.min_tokens.value_or(0);
  DSA_RETURN_IF_ERROR(CheckInt(names.min_tokens, stop.min_tokens, 0, stop.max_tokens));
  stop.ignore_end = ask.ignore_eos;
  const auto stop_ids = static_cast<std::int64_t>(ask.stop_token_ids.size());
  if (stop_ids > kStopIdsMax) {
    return InvalidArgument(
        fmt::format("{}: {} ids, at most {}", names.stop_token_ids, stop_ids, kStopIdsMax));
  }
  DSA_ASSIGN_OR_RETURN(stop.stop_ids,
                       ToTokenIds(ask.stop_token_ids, names.stop_token_ids, context));
  DSA_RETURN_IF_ERROR(CheckStopStrings(ask.stop, names.stop));
  stop.stop_strings = ask.stop;
  return stop;
}

// What neither draws a token nor ends a reply.
Status ResolveRest(const Ask& ask, const FieldNames& names, Request& request) {
  if (ask.top_logprobs) {
    DSA_RETURN_IF_ERROR(CheckInt(names.top_logprobs, *ask.top_logprobs, 0, kTopLogprobsLimit));
    if (!ask.logprobs) {
      return InvalidArgument(
          fmt::format("{}: {} needs {}", names.top_logprobs, *ask.top_logprobs, names.logprobs));
    }
  }
  if (ask.logprobs) {
    request.sampling.top_logprobs = static_cast<std::int32_t>(ask.top_logprobs.value_or(0));
  }
  if (ask.cache_salt.size() > kCacheSaltBytesMax) {
    return InvalidArgument(fmt::format("{}: {} bytes, at most {}", names.cache_salt,
                                       ask.cache_salt.size(), kCacheSaltBytesMax));
  }
  request.cache_salt = ask.cache_salt;
  DSA_RETURN_IF_ERROR(CheckInt(names.priority, ask.priority, -kPriorityMax, kPriorityMax));
  request.priority = static_cast<std::int32_t>(ask.priority);
  return {};
}

// They leave in one piece, however the answer comes, where the protocol has them with each answer
// as often, and are reserved when the request is.
Status ResolvePromptLogprobs(const Ask& ask, const FieldNames& names, const ServiceContext& context,
                             Generation& generation) {
  if (!ask.prompt_logprobs) {
    return {};
  }
  DSA_RETURN_IF_ERROR(CheckInt(names.prompt_logprobs, *ask.prompt_logprobs, 0, kTopLogprobsLimit));
  std::int64_t tokens = 0;
  for (ResolvedPrompt& prompt : generation.prompts) {
    tokens += static_cast<std::int64_t>(prompt.request.prompt.size());
    prompt.request.prompt_logprobs = static_cast<std::int32_t>(*ask.prompt_logprobs);
  }
  const std::int64_t logprobs = tokens * (1 + *ask.prompt_logprobs) * generation.answers;
  const std::int64_t logprobs_max = context.slow_client.logprobs_max;
  if (logprobs <= logprobs_max) {
    return {};
  }
  const std::string prompts = generation.prompts.size() > 1
                                  ? fmt::format("{} prompts", generation.prompts.size())
                                  : "a prompt";
  return InvalidArgument(
      fmt::format("{}: {} with {} of {} tokens{} is {} log-probabilities, at most {}",
                  names.prompt_logprobs, *ask.prompt_logprobs, prompts, tokens,
                  generation.answers > 1 ? fmt::format(" and {} answers", generation.answers) : "",
                  logprobs, logprobs_max));
}

// The prompt as the client said it, or the text of its ids.
Result<std::string> EchoOf(const Prompt& asked, const FieldNames& names,
                           const ServiceContext& context) {
  if (const TextPrompt* text = std::get_if<TextPrompt>(&asked)) {
    return text->text;
  }
  const IdPrompt* ids = std::get_if<IdPrompt>(&asked);
  return ids == nullptr || context.tokenizer == nullptr
             ? std::string()
             : DecodeWithin(*ids, names.token_ids, context);
}

Result<ResolvedPrompt> ResolveOne(const Prompt& asked, const Ask& ask, const FieldNames& names,
                                  const ServiceContext& context) {
  ResolvedPrompt prompt;
  Request& request = prompt.request;
  DSA_ASSIGN_OR_RETURN(request.prompt, ResolvePrompt(asked, ask, names, context));
  DSA_ASSIGN_OR_RETURN(request.sampling, ResolveSampling(ask, names, context.model));
  const auto prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
  DSA_ASSIGN_OR_RETURN(request.stop, ResolveStop(ask, prompt_tokens, names, context));
  DSA_RETURN_IF_ERROR(ResolveRest(ask, names, request));
  if (ask.echo) {
    DSA_ASSIGN_OR_RETURN(prompt.echo, EchoOf(asked, names, context));
  }
  return prompt;
}

}  // namespace

Status CheckAnswerCount(std::size_t prompts, std::int64_t answers, std::string_view field) {
  const std::int64_t all = static_cast<std::int64_t>(prompts) * answers;
  if (all <= kCallAnswersMax) {
    return {};
  }
  return InvalidArgument(
      answers == 1 ? fmt::format("{}: {} prompts, at most {}", field, prompts, kCallAnswersMax)
                   : fmt::format("{}: {} prompts with {} answers each are {}, at most {}", field,
                                 prompts, answers, all, kCallAnswersMax));
}

Result<Generation> Resolve(Ask&& ask, const FieldNames& names, const ServiceContext& context) {
  DSA_CHECK(!ask.prompts.empty(), "Resolve: a call without a prompt");
  DSA_RETURN_IF_ERROR(CheckModel(ask.model, names.model, context));
  Generation generation;
  generation.answers = ask.n.value_or(1);
  DSA_RETURN_IF_ERROR(CheckInt(names.n, generation.answers, 1, kAnswersMax));
  DSA_RETURN_IF_ERROR(CheckAnswerCount(ask.prompts.size(), generation.answers, names.prompt));
  if (const Chat* chat = std::get_if<Chat>(&ask.prompts.front())) {
    generation.format = {.chat = context.model.chat_format, .thinking = BeginsReasoning(*chat)};
  }
  for (std::size_t i = 0; i < ask.prompts.size(); ++i) {
    const std::string path = fmt::format("{}[{}]", names.prompt, i);
    FieldNames of_prompt = names;
    if (ask.prompts.size() > 1) {
      of_prompt.prompt = path;
      of_prompt.token_ids = path;
    }
    DSA_ASSIGN_OR_RETURN(ResolvedPrompt prompt,
                         ResolveOne(ask.prompts[i], ask, of_prompt, context));
    generation.prompts.push_back(std::move(prompt));
    ask.prompts[i] = {};  // with its memory
  }
  DSA_RETURN_IF_ERROR(ResolvePromptLogprobs(ask, names, context, generation));
  generation.cost = ask.report_cost ? ReportCost::kYes : ReportCost::kNo;
  generation.logprobs = ask.logprobs ? ReportLogprobs::kYes : ReportLogprobs::kNo;
  return generation;
}

}  // namespace dsa
