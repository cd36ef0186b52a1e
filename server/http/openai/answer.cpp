#include "server/http/openai/answer.h"

#include "common/json.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <utility>

namespace dsa {
namespace {

constexpr std::string_view kChatChunk = "chat.completion.chunk";

std::int64_t SecondsSince1970() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// JSON knows no infinity.
double Finite(float logprob) {
  constexpr double kLeast = -9999.0;
  return std::max(static_cast<double>(logprob), kLeast);
}

Json FinishOf(const ReplyPart& part) {
  if (!part.finish) {
    return nullptr;
  }
  // An abort by the operator, which OpenAI has no word for, is vLLM's.
  return *part.finish == ReplyFinish::kAborted ? "abort" : std::string(ToString(*part.finish));
}

Json UsageOf(const ReplyPart& part) {
  const Usage& usage = part.usage;
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cache_hit_tokens}}},
          {"completion_tokens_details", {{"reasoning_tokens", part.reasoning_tokens}}},
          {"prompt_cache_hit_tokens", usage.cache_hit_tokens},
          {"prompt_cache_miss_tokens", usage.prompt_tokens - usage.cache_hit_tokens}};
}

std::string_view BytesOf(TokenId id, const ServiceContext& context) {
  return context.tokenizer == nullptr ? std::string_view() : context.tokenizer->Bytes(id);
}

Json ChatLogprob(TokenId id, float logprob, const ServiceContext& context) {
  const std::string_view bytes = BytesOf(id, context);
  Json numbers = Json::array();
  for (const char byte : bytes) {
    numbers.push_back(static_cast<unsigned char>(byte));
  }
  return {{"token", bytes}, {"logprob", Finite(logprob)}, {"bytes", std::move(numbers)}};
}

Json ChatLogprobs(const ReplyPart& part, const ServiceContext& context) {
  Json content = Json::array();
  for (const GeneratedToken& token : part.tokens) {
    Json entry = ChatLogprob(token.id, token.logprob, context);
    Json top = Json::array();
    for (const TokenLogprob& candidate : token.top_logprobs) {
      top.push_back(ChatLogprob(candidate.id, candidate.logprob, context));
    }
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}};
}

std::int64_t Characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;  // not inside of one
  });
}

// The lists of the older endpoint.
struct LogprobLists {
  Json tokens = Json::array();
  Json logprobs = Json::array();
  Json tops = Json::array();
  Json offsets = Json::array();

  void Add(const GeneratedToken& token, const ServiceContext& context, std::int64_t offset) {
    tokens.push_back(BytesOf(token.id, context));
    logprobs.push_back(Finite(token.logprob));
    offsets.push_back(offset);
    Json top = Json::object();
    for (const TokenLogprob& candidate : token.top_logprobs) {
      top[std::string(BytesOf(candidate.id, context))] = Finite(candidate.logprob);
    }
    tops.push_back(std::move(top));
  }
};

// What stands before an answer's own log-probabilities, where those of the prompt were asked for;
// its first token has none.
struct EchoedPrompt {
  std::optional<TokenId> begin{};
  std::span<const GeneratedToken> rest{};
};

// `offset` is the number of characters before, and after.
Json CompletionLogprobs(const ReplyPart& part, const EchoedPrompt& echoed,
                        const ServiceContext& context, std::int64_t& offset) {
  LogprobLists lists;
  if (echoed.begin) {
    lists.Add({.id = *echoed.begin, .top_logprobs = {}}, context, offset);
    lists.logprobs.back() = nullptr;
    lists.tops.back() = nullptr;
    if (echoed.begin != context.model.bos) {  // which is no part of the text
      offset += Characters(BytesOf(*echoed.begin, context));
    }
    for (const GeneratedToken& token : echoed.rest) {
      lists.Add(token, context, offset);
      offset += Characters(BytesOf(token.id, context));
    }
  }
  std::string_view text = part.content;
  for (const GeneratedToken& token : part.tokens) {
    lists.Add(token, context, offset);
    const auto bytes = std::min(static_cast<std::size_t>(token.text_bytes), text.size());
    offset += Characters(text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
  return {{"tokens", std::move(lists.tokens)},
          {"token_logprobs", std::move(lists.logprobs)},
          {"top_logprobs", std::move(lists.tops)},
          {"text_offset", std::move(lists.offsets)}};
}

// vLLM's: by position of the prompt, what was likely there by id, its own token first.  Of that the
// rank is known where it is one of the likely ones.
Json PromptLogprobsOf(std::span<const GeneratedToken> prompt, const ServiceContext& context) {
  Json list = Json::array();
  list.push_back(nullptr);  // of the first token there is none
  for (const GeneratedToken& token : prompt) {
    Json entry = Json::object();
    const auto add = [&](TokenId id, float logprob, Json rank) {
      entry[std::to_string(Value(id))] = {{"logprob", Finite(logprob)},
                                          {"rank", std::move(rank)},
                                          {"decoded_token", BytesOf(id, context)}};
    };
    add(token.id, token.logprob, nullptr);
    for (std::size_t i = 0; i < token.top_logprobs.size(); ++i) {
      add(token.top_logprobs[i].id, token.top_logprobs[i].logprob, i + 1);
    }
    list.push_back(std::move(entry));
  }
  return list;
}

// With an index in a stream, where a client puts the pieces together.
Json ToolCallsOf(const ReplyPart& part, std::int64_t* index) {
  Json calls = Json::array();
  for (const ToolCall& call : part.tool_calls) {
    Json entry = {{"id", call.id},
                  {"type", "function"},
                  {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
    if (index != nullptr) {
      entry["index"] = (*index)++;
    }
    calls.push_back(std::move(entry));
  }
  return calls;
}

Json MessageOf(const ReplyPart& reply) {
  Json message = {{"role", "assistant"}, {"content", reply.content}};
  if (reply.content.empty() && !reply.tool_calls.empty()) {
    message["content"] = nullptr;
  }
  if (!reply.reasoning.empty()) {
    message["reasoning_content"] = reply.reasoning;
  }
  if (!reply.tool_calls.empty()) {
    message["tool_calls"] = ToolCallsOf(reply, nullptr);
  }
  return message;
}

// Null where none were asked for.
Json LogprobsOf(Endpoint endpoint, const ReplyPart& part, const ReplyHead& head,
                const EchoedPrompt& echoed, const ServiceContext& context,
                std::int64_t& text_offset) {
  if (head.logprobs == ReportLogprobs::kNo) {
    return nullptr;
  }
  return endpoint == Endpoint::kChat ? ChatLogprobs(part, context)
                                     : CompletionLogprobs(part, echoed, context, text_offset);
}

// What answers of one call share.
struct Envelope {
  Endpoint endpoint;
  std::int64_t created;
  const ServiceContext& context;
};

Json Wrap(const Envelope& envelope, std::string_view chat_object, Json choices,
          const ReplyHead& head) {
  const bool is_chat = envelope.endpoint == Endpoint::kChat;
  return {{"id", (is_chat ? "chatcmpl-" : "cmpl-") + head.request_id},
          {"object", is_chat ? chat_object : "text_completion"},
          {"created", envelope.created},
          {"model", envelope.context.model.id},
          {"choices", std::move(choices)}};
}

}  // namespace

std::string AsEvent(const std::string& json) {
  return "data: " + json + "\n\n";
}

AnswerEncoder::AnswerEncoder(Endpoint endpoint, const ServiceContext& context)
    : endpoint_(endpoint), context_(context), created_(SecondsSince1970()) {}

AnswerEncoder::Progress& AnswerEncoder::ProgressOf(const ReplyPart& part) {
  const auto index = static_cast<std::size_t>(part.index);
  choices_.resize(std::max(choices_.size(), index + 1));
  return choices_[index];
}

std::string AnswerEncoder::Whole(const ReplyPart& reply, const ReplyHead& head,
                                 const AnswerForm& form) {
  std::span<const GeneratedToken> said;  // of a prompt: its first answer has it for all
  Json choices = Json::array();
  const auto add = [&](const ReplyPart& one) {
    if (head.IsFirstOfPrompt(one.index)) {
      said = one.prompt;
    }
    const PromptHead& prompt = head.prompts[head.PromptOf(one.index)];
    const EchoedPrompt echoed = form.echo ? EchoedPrompt{prompt.begin, said} : EchoedPrompt{};
    Json choice = {{"index", one.index}};
    if (endpoint_ == Endpoint::kChat) {
      choice["message"] = MessageOf(one);
    } else {
      choice["text"] = prompt.echo + one.content;
    }
    choice["logprobs"] =
        LogprobsOf(endpoint_, one, head, echoed, context_, ProgressOf(one).text_offset);
    if (form.prompt_logprobs) {
      choice["prompt_logprobs"] = PromptLogprobsOf(said, context_);
    }
    choice["finish_reason"] = FinishOf(one);
    choices.push_back(std::move(choice));
  };
  add(reply);
  std::for_each(reply.others.begin(), reply.others.end(), add);
  Json answer = Wrap({endpoint_, created_, context_}, "chat.completion", std::move(choices), head);
  answer["usage"] = UsageOf(reply);
  return Dump(answer);
}

std::string AnswerEncoder::Event(const ReplyPart& part, const ReplyHead& head,
                                 const AnswerForm& form) {
  Progress& progress = ProgressOf(part);
  const PromptHead& prompt = head.prompts[head.PromptOf(part.index)];
  Json choice = {{"index", part.index}};
  if (endpoint_ == Endpoint::kChat) {
    Json delta = Json::object();
    if (!progress.begun) {
      delta["role"] = "assistant";
    }
    if (!part.reasoning.empty()) {
      delta["reasoning_content"] = part.reasoning;
    }
    if (!part.content.empty() || !progress.begun) {
      delta["content"] = part.content;
    }
    if (!part.tool_calls.empty()) {
      delta["tool_calls"] = ToolCallsOf(part, &progress.tool_calls);
    }
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = progress.begun ? part.content : prompt.echo + part.content;
  }
  const bool begins = !std::exchange(progress.begun, true);
  prompts_.resize(head.prompts.size());
  std::vector<GeneratedToken>& said = prompts_[head.PromptOf(part.index)];
  const bool is_first = head.IsFirstOfPrompt(part.index);
  EchoedPrompt echoed;
  if (begins) {
    echoed = {prompt.begin, is_first ? part.prompt : said};
  }
  choice["logprobs"] = LogprobsOf(endpoint_, part, head, echoed, context_, progress.text_offset);
  if (is_first && head.answers > 1 && !part.prompt.empty()) {
    said = part.prompt;
  }
  choice["finish_reason"] = FinishOf(part);
  Json event =
      Wrap({endpoint_, created_, context_}, kChatChunk, Json::array({std::move(choice)}), head);
  if (form.include_usage) {
    event["usage"] = nullptr;
  }
  return AsEvent(Dump(event));
}

std::string AnswerEncoder::UsageEvent(const ReplyPart& last, const ReplyHead& head) const {
  Json answer = Wrap({endpoint_, created_, context_}, kChatChunk, Json::array(), head);
  answer["usage"] = UsageOf(last);
  return AsEvent(Dump(answer));
}

}  // namespace dsa
