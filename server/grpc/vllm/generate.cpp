#include "server/grpc/vllm/generate.h"

#include "server/api/errors.h"
#include "server/grpc/wire.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

namespace engine = vllm::grpc::engine;

// What the router may set and would change the answer.
Status CheckSamplingDone(const engine::SamplingParams& message) {
  const std::pair<bool, std::string_view> wanted[] = {
      {message.has_json_schema(), "json_schema"},
      {message.has_regex(), "regex"},
      {message.has_grammar(), "grammar"},
      {message.has_structural_tag(), "structural_tag"},
      {message.has_json_object(), "json_object"},
      {message.has_choice(), "choice"},
      {message.has_truncate_prompt_tokens(), "truncate_prompt_tokens"}};
  for (const auto& [set, name] : wanted) {
    if (set) {
      return NotSupportedError(fmt::format("sampling_params.{}", name));
    }
  }
  return {};
}

Status CheckDone(const engine::GenerateRequest& message) {
  if (message.has_kv_transfer_params()) {
    return NotSupportedError("kv_transfer_params");
  }
  if (message.has_kv_transfer_params_json()) {
    return NotSupportedError("kv_transfer_params_json");
  }
  if (message.has_mm_inputs()) {
    return NotSupportedError("mm_inputs");
  }
  if (message.media_refs_size() > 0) {
    return NotSupportedError("media_refs");
  }
  if (message.extra_mm_inputs_size() > 0) {
    return NotSupportedError("extra_mm_inputs");
  }
  if (message.data_parallel_rank() != 0) {
    return InvalidArgument(fmt::format("data_parallel_rank: {} is not in [0, 0]: there is one rank",
                                       message.data_parallel_rank()));
  }
  return CheckSamplingDone(message.sampling_params());
}

// Zero is off where the protocol has no presence: the model's own defaults are the router's to
// apply.
void ReadSampling(const engine::SamplingParams& message, Ask& ask) {
  ask.temperature = message.has_temperature() ? message.temperature() : 1.0F;
  ask.top_p = message.top_p() == 0.0F ? 1.0F : message.top_p();
  ask.top_k = message.top_k();
  ask.min_p = message.min_p();
  ask.frequency_penalty = message.frequency_penalty();
  ask.presence_penalty = message.presence_penalty();
  const float repetition = message.repetition_penalty();
  ask.repetition_penalty = repetition == 0.0F ? 1.0F : repetition;
  for (const auto& [id, add] : message.logit_bias()) {
    ask.logit_bias.push_back({.id = id, .add = add});
  }
  if (message.has_max_tokens()) {
    ask.max_tokens = message.max_tokens();
  }
  ask.min_tokens = message.min_tokens();
  ask.stop.assign(message.stop().begin(), message.stop().end());
  ask.stop_token_ids.assign(message.stop_token_ids().begin(), message.stop_token_ids().end());
  ask.ignore_eos = message.ignore_eos();
  if (message.has_logprobs()) {
    ask.logprobs = true;
    ask.top_logprobs = message.logprobs();
  }
  if (message.has_prompt_logprobs()) {
    ask.prompt_logprobs = message.prompt_logprobs();
  }
  ask.n = message.n() == 0 ? 1 : message.n();
  if (message.has_seed()) {
    ask.seed = static_cast<std::uint64_t>(std::int64_t{message.seed()});
  }
}

void FillTop(const GeneratedToken& token, engine::TopLogProbs& top) {
  for (const TokenLogprob& candidate : token.top_logprobs) {
    top.add_values(candidate.logprob);
    top.add_token_ids(static_cast<std::uint32_t>(Value(candidate.id)));
  }
}

engine::OutputLogProbs LogprobsOf(const std::vector<GeneratedToken>& tokens) {
  engine::OutputLogProbs logprobs;
  for (const GeneratedToken& token : tokens) {
    logprobs.add_token_logprobs(token.logprob);
    logprobs.add_token_ids(static_cast<std::uint32_t>(Value(token.id)));
    FillTop(token, *logprobs.add_top_logprobs());
  }
  return logprobs;
}

// Of the prompt, whose first token has none.  Where none were asked for, nothing.
template <typename Message>
void FillInputLogprobs(const ReplyPart& part, const ReplyHead& head, Message& message) {
  const std::optional<TokenId> begin = head.prompts.front().begin;
  if (!begin || part.prompt.empty()) {
    return;
  }
  engine::InputLogProbs& logprobs = *message.mutable_input_logprobs();
  logprobs.add_token_logprobs();
  logprobs.add_token_ids(static_cast<std::uint32_t>(Value(*begin)));
  logprobs.add_top_logprobs();
  for (const GeneratedToken& token : part.prompt) {
    logprobs.add_token_logprobs()->set_value(token.logprob);
    logprobs.add_token_ids(static_cast<std::uint32_t>(Value(token.id)));
    FillTop(token, *logprobs.add_top_logprobs());
  }
}

std::string FinishName(ReplyFinish finish) {
  switch (finish) {
    case ReplyFinish::kStop: return "stop";
    case ReplyFinish::kLength: return "length";
    default: return "abort";
  }
}

// One call.  Of each answer chunks say what came since the one before, and an end says it all.
class VllmCodec final : public MessageCodec {
 public:
  explicit VllmCodec(const ServiceContext& context) : end_ids_(context.model.end_ids) {}

  Status Read(const grpc::ByteBuffer& bytes, Ask& ask) override {
    engine::GenerateRequest message;
    DSA_RETURN_IF_ERROR(ParseMessage(bytes, UnknownFields::kIgnored, message));
    DSA_RETURN_IF_ERROR(ToAsk(message, ask));
    streams_ = message.stream();
    const engine::SamplingParams& sampling = message.sampling_params();
    if (sampling.ignore_eos()) {
      end_ids_.clear();
    }
    for (const std::uint32_t id : sampling.stop_token_ids()) {
      end_ids_.push_back(TokenId{static_cast<std::int32_t>(id)});
    }
    if (sampling.stop_size() == 1) {
      stop_ = sampling.stop(0);
    }
    return {};
  }

  std::vector<grpc::ByteBuffer> Encode(const ReplyPart& part, const ReplyHead& head) override {
    std::vector<grpc::ByteBuffer> messages;
    Add(part, head, messages);
    for (const ReplyPart& other : part.others) {
      Add(other, head, messages);
    }
    return messages;
  }

 private:
  void Add(const ReplyPart& part, const ReplyHead& head, std::vector<grpc::ByteBuffer>& messages) {
    const auto index = static_cast<std::size_t>(part.index);
    ids_.resize(std::max(ids_.size(), index + 1));
    for (const GeneratedToken& token : part.tokens) {
      ids_[index].push_back(token.id);
    }
    if (streams_ && (!part.tokens.empty() || !part.prompt.empty() || !part.finish)) {
      messages.push_back(Chunk(part, head));
    }
    const bool failed = part.finish == ReplyFinish::kError || part.finish == ReplyFinish::kDeadline;
    if (part.finish && !failed) {  // of those the status speaks
      messages.push_back(Complete(part, head, ids_[index]));
    }
  }

  static grpc::ByteBuffer Chunk(const ReplyPart& part, const ReplyHead& head) {
    engine::GenerateResponse response;
    engine::GenerateStreamChunk& chunk = *response.mutable_chunk();
    for (const GeneratedToken& token : part.tokens) {
      chunk.add_token_ids(static_cast<std::uint32_t>(Value(token.id)));
    }
    chunk.set_prompt_tokens(static_cast<std::uint32_t>(part.usage.prompt_tokens));
    chunk.set_completion_tokens(static_cast<std::uint32_t>(part.tokens.size()));
    chunk.set_cached_tokens(static_cast<std::uint32_t>(part.usage.cache_hit_tokens));
    if (head.logprobs == ReportLogprobs::kYes) {
      *chunk.mutable_output_logprobs() = LogprobsOf(part.tokens);
    }
    FillInputLogprobs(part, head, chunk);
    chunk.set_index(static_cast<std::uint32_t>(part.index));
    return Serialize(response);
  }

  // `ids` are all of the answer; the part's usage is of all answers.
  grpc::ByteBuffer Complete(const ReplyPart& part, const ReplyHead& head,
                            const std::vector<TokenId>& ids) const {
    engine::GenerateResponse response;
    engine::GenerateComplete& complete = *response.mutable_complete();
    for (const TokenId id : ids) {
      complete.add_output_ids(static_cast<std::uint32_t>(Value(id)));
    }
    complete.set_finish_reason(FinishName(*part.finish));
    complete.set_prompt_tokens(static_cast<std::uint32_t>(part.usage.prompt_tokens));
    complete.set_completion_tokens(static_cast<std::uint32_t>(part.answer_tokens));
    complete.set_cached_tokens(static_cast<std::uint32_t>(part.usage.cache_hit_tokens));
    if (!streams_ && head.logprobs == ReportLogprobs::kYes) {
      *complete.mutable_output_logprobs() = LogprobsOf(part.tokens);
    }
    if (!streams_) {
      FillInputLogprobs(part, head, complete);
    }
    complete.set_index(static_cast<std::uint32_t>(part.index));
    if (part.finish == ReplyFinish::kStop) {
      SayWhatStopped(ids, complete);
    }
    return Serialize(response);
  }

  void SayWhatStopped(const std::vector<TokenId>& ids, engine::GenerateComplete& complete) const {
    const bool by_id =
        !ids.empty() && std::find(end_ids_.begin(), end_ids_.end(), ids.back()) != end_ids_.end();
    if (by_id) {
      complete.set_matched_token_id(static_cast<std::uint32_t>(Value(ids.back())));
    } else if (!stop_.empty()) {
      complete.set_matched_stop_str(stop_);
    }
  }

  std::vector<TokenId> end_ids_;  // that end the answer, the model's and the request's
  bool streams_ = false;
  std::string stop_;                       // the request's only one
  std::vector<std::vector<TokenId>> ids_;  // by answer, so far
};

}  // namespace

Status ToAsk(const engine::GenerateRequest& message, Ask& ask) {
  ask.request_id = message.request_id();
  ask.delivery = message.stream() ? Delivery::kStream : Delivery::kWhole;
  DSA_RETURN_IF_ERROR(CheckDone(message));
  ReadSampling(message.sampling_params(), ask);
  switch (message.input_case()) {
    case engine::GenerateRequest::kTokenized:
      ask.prompts.emplace_back(
          IdPrompt(message.tokenized().input_ids().begin(), message.tokenized().input_ids().end()));
      return {};
    case engine::GenerateRequest::kText:
      ask.prompts.emplace_back(TextPrompt{.text = message.text(), .parse_special = true});
      return {};
    case engine::GenerateRequest::INPUT_NOT_SET: break;
  }
  return InvalidArgument("input: missing: tokenized or text");
}

std::unique_ptr<MessageCodec> MakeVllmCodec(const ServiceContext& context) {
  return std::make_unique<VllmCodec>(context);
}

}  // namespace dsa
