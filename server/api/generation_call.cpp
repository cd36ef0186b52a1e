#include "server/api/generation_call.h"

#include "common/log.h"
#include "server/api/errors.h"

#include <algorithm>
#include <new>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr double kUsPerMs = 1000.0;

// A client whose deadline has passed cancels its call before our clock says so.  From a second on
// the wire has a timeout rounded up to two or three digits, so that ours is up to a hundredth
// longer than the client's; and ours began when its message was read, later on a busy machine by
// more than its cancellation.  How long before the end a cancellation is the deadline's:
std::int64_t DeadlineTolerance(std::int64_t timeout_us) {
  constexpr std::int64_t kRoundingShare = 100;
  constexpr std::int64_t kDelayUs = 25'000;
  constexpr std::int64_t kDelayShare = 10;  // at most, of a short timeout
  return timeout_us / kRoundingShare + std::min(kDelayUs, timeout_us / kDelayShare);
}

}  // namespace

// Where the tokens of an answer behind the first go.
class GenerationCall::Sibling final : public TokenSink {
 public:
  Sibling(std::shared_ptr<GenerationCall> call, std::size_t index)
      : TokenSink(call.get()), call_(std::move(call)), index_(index) {}

  void OnDelta(TokenDelta&& delta) override { call_->OnAnswerDelta(index_, std::move(delta)); }
  std::unique_ptr<TextDecoder> MakeDecoder() const override { return call_->MakeDecoder(); }
  std::unique_ptr<ContentReader> MakeContentReader() const override {
    return call_->MakeContentReader();
  }

 private:
  const std::shared_ptr<GenerationCall> call_;
  const std::size_t index_;
};

GenerationCall::GenerationCall(ServiceContext& context, CallFacts facts, ReplyWriter& writer)
    : context_(context),
      facts_(std::move(facts)),
      arrival_us_(context.clock.NowUs()),
      writer_(&writer),
      answers_(context.held_bytes) {
  if (IsRequestId(facts_.request_id_header)) {
    head_.request_id = facts_.request_id_header;
  }
}

GenerationCall::~GenerationCall() {
  if (prompt_budget_ != nullptr) {
    prompt_budget_->Give(prompt_bytes_);
  }
}

std::shared_ptr<GenerationCall> GenerationCall::Start(ServiceContext& context, CallFacts facts,
                                                      std::size_t bytes, ReadAsk read,
                                                      ReplyWriter& writer) {
  auto call = std::make_shared<GenerationCall>(context, std::move(facts), writer);
  context.open_calls.Add(call.get());
  const Status taken = context.workers.Do(bytes, [call, read = std::move(read)] {
    Status status;
    try {
      status = call->Submit(read, call);
    } catch (const std::bad_alloc&) {
      status = NoMemoryError();
    }
    if (!status.ok()) {
      call->Refuse(status.error());
      return;
    }
    const std::lock_guard lock(call->mutex_);
    call->waits_ = call->delivery_ == Delivery::kStream;
    call->spoken_us_ = call->context_.clock.NowUs();
  });
  if (!taken.ok()) {
    call->Refuse(taken.error());
  }
  return call;
}

Status GenerationCall::Submit(const ReadAsk& read, const std::shared_ptr<GenerationCall>& self) {
  if (context_.draining.load(std::memory_order_relaxed)) {
    return DrainingError();
  }
  const Departure departure = departure_.load(std::memory_order_relaxed);
  if (departure != Departure::kNone) {
    return FinalStatus(departure);  // while it waited to be read
  }
  std::string wanted_id;
  DSA_ASSIGN_OR_RETURN(Generation generation, Prepare(read, wanted_id));
  head_.seed = generation.prompts.front().request.sampling.seed;
  head_.logprobs = generation.logprobs;
  head_.cost = generation.cost;
  head_.answers = generation.answers;
  format_ = generation.format;
  DSA_RETURN_IF_ERROR(TakePromptBytes(generation));
  for (ResolvedPrompt& prompt : generation.prompts) {
    PromptHead& head = head_.prompts.emplace_back();
    head.echo = std::move(prompt.echo);
    if (prompt.request.prompt_logprobs) {
      head.begin = prompt.request.prompt.front();
    }
  }
  BeginAnswers(generation);
  return SubmitUnder(wanted_id, ToSiblings(std::move(generation), self));
}

// The engine reserves the log-probabilities of a prompt when it takes the request.
Status GenerationCall::TakePromptBytes(const Generation& generation) {
  std::int64_t bytes = 0;
  for (const ResolvedPrompt& prompt : generation.prompts) {
    const std::optional<std::int32_t>& candidates = prompt.request.prompt_logprobs;
    if (candidates) {
      const auto row_bytes = static_cast<std::int64_t>(
          sizeof(GeneratedToken) + static_cast<std::size_t>(*candidates) * sizeof(TokenLogprob));
      bytes += static_cast<std::int64_t>(prompt.request.prompt.size()) * row_bytes;
    }
  }
  if (bytes == 0) {
    return {};
  }
  const std::int64_t bytes_max = context_.slow_client.prompt_logprob_bytes_max;
  if (!context_.prompt_logprobs->Take(bytes, bytes_max)) {
    return Error{ErrorCode::kResourceExhausted,
                 fmt::format("{}: those of all requests together hold {} bytes at most",
                             facts_.fields->prompt_logprobs, bytes_max)};
  }
  prompt_budget_ = context_.prompt_logprobs;
  prompt_bytes_ = bytes;
  return {};
}

void GenerationCall::BeginAnswers(const Generation& generation) {
  std::vector<std::int64_t> prompt_tokens;
  for (const ResolvedPrompt& prompt : generation.prompts) {
    prompt_tokens.push_back(static_cast<std::int64_t>(prompt.request.prompt.size()));
  }
  const std::size_t answers =
      generation.prompts.size() * static_cast<std::size_t>(generation.answers);
  assemblers_.reserve(answers);
  for (std::size_t i = 0; i < answers; ++i) {
    assemblers_.emplace_back(format_);
  }
  const std::lock_guard lock(mutex_);  // others look at the call already
  answers_.Begin(prompt_tokens, generation.answers, generation.logprobs);
}

Result<Generation> GenerationCall::Prepare(const ReadAsk& read, std::string& wanted_id) {
  Ask ask;
  Status status = read(ask);
  wanted_id = ask.request_id;
  if (IsRequestId(wanted_id)) {
    head_.request_id = wanted_id;
  }
  if (!status.ok()) {
    return status.error();
  }
  delivery_ = ask.delivery;
  ignored_fields_ = ask.ignored_fields;
  DSA_ASSIGN_OR_RETURN(Generation generation, Resolve(std::move(ask), *facts_.fields, context_));
  if (!wanted_id.empty()) {
    DSA_RETURN_IF_ERROR(CheckRequestId(wanted_id, facts_.fields->request_id));
  }
  return generation;
}

std::vector<Siblings> GenerationCall::ToSiblings(
    Generation&& generation, const std::shared_ptr<GenerationCall>& self) const {
  std::vector<Siblings> prompts;
  std::size_t index = 0;
  for (ResolvedPrompt& prompt : generation.prompts) {
    Siblings& siblings = prompts.emplace_back();
    siblings.request = std::move(prompt.request);
    siblings.request.id = context_.engine.NextRequestId();
    siblings.request.arrival_us = arrival_us_;
    siblings.request.stop.deadline_us = facts_.deadline_us;
    for (std::int64_t i = 0; i < generation.answers; ++i, ++index) {
      if (index == 0) {
        siblings.sinks.push_back(self);
      } else {
        siblings.sinks.push_back(std::make_shared<Sibling>(self, index));
      }
    }
  }
  return prompts;
}

// An id in the message binds the engine; one in the header, which a proxy may have set for several
// requests, is taken where it is free.
Status GenerationCall::SubmitUnder(const std::string& wanted_id, std::vector<Siblings>&& prompts) {
  const auto name = [&prompts](const std::string& id) {
    for (Siblings& prompt : prompts) {
      prompt.request.external_id = id;
    }
  };
  if (wanted_id.empty() && IsRequestId(facts_.request_id_header)) {
    name(facts_.request_id_header);
    Status status = context_.engine.SubmitTogether(prompts);
    if (status.ok() || status.error().code != ErrorCode::kAlreadyExists) {
      return status;
    }
  }
  head_.request_id = wanted_id.empty() ? context_.request_ids.Make() : wanted_id;
  name(head_.request_id);
  Status status = context_.engine.SubmitTogether(std::move(prompts));
  if (!status.ok() && status.error().code == ErrorCode::kAlreadyExists) {
    return Error{ErrorCode::kAlreadyExists,
                 fmt::format("{}: \"{}\" names a request that is live", facts_.fields->request_id,
                             head_.request_id)};
  }
  return status;
}

std::unique_ptr<TextDecoder> GenerationCall::MakeDecoder() const {
  return MakeReplyTextDecoder(format_, context_.tokenizer);
}

std::unique_ptr<ContentReader> GenerationCall::MakeContentReader() const {
  return MakeReplyContentReader(format_);
}

void GenerationCall::Refuse(const Error& error) {
  const std::lock_guard lock(mutex_);
  Close(error);
  writer_->Finish(nullptr, head_, error);
}

void GenerationCall::OnDelta(TokenDelta&& delta) {
  OnAnswerDelta(0, std::move(delta));
}

void GenerationCall::OnAnswerDelta(std::size_t index, TokenDelta&& delta) {
  ReplyPart part = assemblers_[index].Add(std::move(delta));
  part.index = static_cast<std::int64_t>(index);
  const std::lock_guard lock(mutex_);
  answers_.Note(part);
  if (writer_ == nullptr || closed_) {
    return;
  }
  answers_.Hold(std::move(part));
  DropIfSlow();
  EndIfLarge();
  Advance();
}

void GenerationCall::OnWriteDone(bool ok) {
  if (!ok) {
    OnCancel();  // the client is gone; the engine's last delta ends the call
  }
  const std::lock_guard lock(mutex_);
  write_in_flight_ = false;
  spoken_us_ = context_.clock.NowUs();
  Advance();
}

// Where the deadline passed the engine ends the request by it, and so says where it stood then.
void GenerationCall::OnCancel() {
  const MonotonicUs now_us = context_.clock.NowUs();
  const bool late =
      facts_.deadline_us &&
      now_us + DeadlineTolerance(*facts_.deadline_us - arrival_us_) >= *facts_.deadline_us;
  Depart(late ? Departure::kDeadline : Departure::kCancelled);
  if (!late) {
    Cancel();
  }
}

void GenerationCall::OnDone() {
  context_.open_calls.Remove(this);
  const std::lock_guard lock(mutex_);
  // Who left while the status was on its way did not get it.
  const Departure departure = departure_.load(std::memory_order_relaxed);
  if (departure != Departure::kNone) {
    const Status left = FinalStatus(departure);
    if (outcome_.ok() || outcome_.error().code != left.error().code) {
      outcome_ = left;
    }
  }
  Log(outcome_);
  writer_ = nullptr;  // nothing is held behind it: the engine may have the sink for longer
  answers_.Drop();
}

void GenerationCall::Look() {
  const std::lock_guard lock(mutex_);
  DropIfSlow();
  StayAliveIfSilent();
}

void GenerationCall::StayAliveIfSilent() {
  const bool listens = waits_ && writer_ != nullptr && !closed_ && !write_in_flight_ &&
                       departure_.load(std::memory_order_relaxed) == Departure::kNone;
  if (!listens) {
    return;
  }
  const MonotonicUs now_us = context_.clock.NowUs();
  if (now_us - spoken_us_ >= context_.slow_client.silent_us_max) {
    spoken_us_ = now_us;
    write_started_us_ = now_us;
    write_in_flight_ = writer_->StayAlive(head_);
  }
}

// Whether all replies hold too much, of which this call's is no small part.
bool GenerationCall::IsCrowded() const {
  constexpr std::int64_t kSmallBytes = std::int64_t{16} << 10;
  return answers_.held_bytes() > kSmallBytes &&
         context_.held_bytes.load(std::memory_order_relaxed) > context_.slow_client.held_bytes_max;
}

// Of a whole reply, which nobody could have read yet.
void GenerationCall::EndIfLarge() {
  if (delivery_ != Delivery::kWhole || answers_.finished() ||
      departure_.load(std::memory_order_relaxed) != Departure::kNone) {
    return;
  }
  const bool many = answers_.held_logprobs() > context_.slow_client.logprobs_max;
  if (many || IsCrowded()) {
    Depart(many ? Departure::kTooManyLogprobs : Departure::kTooLarge);
    Cancel();
    answers_.Drop();
  }
}

void GenerationCall::Depart(Departure departure) {
  Departure none = Departure::kNone;
  departure_.compare_exchange_strong(none, departure, std::memory_order_relaxed);
}

// A write in flight ends when the client reads or its connection dies (keepalive), which a client
// that is alive and does not read never lets happen.
void GenerationCall::DropIfSlow() {
  if (writer_ == nullptr || departure_.load(std::memory_order_relaxed) != Departure::kNone) {
    return;
  }
  const SlowClientLimits& limits = context_.slow_client;
  const bool stalled = (write_in_flight_ || closed_) &&
                       context_.clock.NowUs() - write_started_us_ >= limits.stalled_us_max;
  const bool behind =
      write_in_flight_ && (answers_.held_bytes() > limits.pending_bytes_max || IsCrowded());
  if (stalled || behind) {
    Depart(Departure::kTooSlow);
    Cancel();
    writer_->Drop();  // without it the write in flight, and with it the call, would stay
  }
}

void GenerationCall::Advance() {
  const std::int64_t waiting = answers_.waiting();
  if (writer_ == nullptr || closed_ || write_in_flight_ || waiting == 0) {
    return;
  }
  const bool gone = departure_.load(std::memory_order_relaxed) != Departure::kNone;
  const bool writes = delivery_ == Delivery::kStream && !gone;
  if (answers_.finished() && (waiting == 1 || !writes)) {
    End();
    return;
  }
  if (!writes) {
    return;
  }
  const ReplyPart part = answers_.Take();
  begun_ = true;
  write_in_flight_ = true;
  write_started_us_ = context_.clock.NowUs();
  writer_->Write(part, head_);
}

// The engine's last deltas have come and nothing is being written.
void GenerationCall::End() {
  // Read once: a client may leave at any moment, and an answer is either sent whole or not at all.
  const Departure departure = departure_.load(std::memory_order_relaxed);
  const Status status = FinalStatus(departure);
  // A stream that has begun gets its last message whatever the status.
  const bool begun = delivery_ == Delivery::kStream && (begun_ || answers_.holds_text());
  const bool sends = departure == Departure::kNone && (status.ok() || begun);
  const ReplyPart last = answers_.TakeAll();
  Close(status);
  writer_->Finish(sends ? &last : nullptr, head_, status);
}

// Never OK where the client has left, nor where any answer failed.
Status GenerationCall::FinalStatus(Departure departure) const {
  switch (departure) {
    case Departure::kTooSlow:
      return Error{ErrorCode::kResourceExhausted, "client too slow: it does not read its stream"};
    case Departure::kTooLarge:
      return Error{
          ErrorCode::kResourceExhausted,
          fmt::format("replies that are not sent yet hold more than {0} bytes, at most {0}: "
                      "ask for fewer tokens, or stream",
                      context_.slow_client.held_bytes_max)};
    case Departure::kTooManyLogprobs:
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("more than {0} log-probabilities, candidates included, at most {0} "
                               "in a whole reply: ask for fewer, or stream",
                               context_.slow_client.logprobs_max)};
    case Departure::kCancelled: return CancelledError();
    case Departure::kDeadline: return answers_.error().value_or(LateError());
    case Departure::kNone: break;
  }
  return answers_.Outcome(context_.draining.load(std::memory_order_relaxed));
}

void GenerationCall::Close(const Status& status) {
  closed_ = true;
  outcome_ = status;
  write_started_us_ = context_.clock.NowUs();
}

void GenerationCall::Log(const Status& outcome) const {
  const Usage usage = answers_.usage();
  const std::optional<ReplyFinish> finish = answers_.finish();
  const double total_ms = static_cast<double>(context_.clock.NowUs() - arrival_us_) / kUsPerMs;
  dsa::Log(LogLevel::kInfo, "request",
           {{"id", head_.request_id},
            {"client_id", Escape(facts_.request_id_header, kLoggedBytesMax)},
            {"method", facts_.method},
            {"code", outcome.ok() ? "OK" : ToString(outcome.error().code)},
            {"error", outcome.ok() ? "" : Escape(outcome.error().message, kLoggedBytesMax)},
            {"finish", finish ? ToString(*finish) : "none"},
            {"ignored_fields", ignored_fields_},
            {"prompt_tokens", usage.prompt_tokens},
            {"cache_hit_tokens", usage.cache_hit_tokens},
            {"completion_tokens", usage.completion_tokens},
            {"queue_ms", static_cast<double>(usage.queue_us) / kUsPerMs},
            {"prefill_ms", static_cast<double>(usage.prefill_us) / kUsPerMs},
            {"decode_ms", static_cast<double>(usage.decode_us) / kUsPerMs},
            {"total_ms", total_ms}});
}

}  // namespace dsa
