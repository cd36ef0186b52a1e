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

GenerationCall::GenerationCall(ServiceContext& context, CallFacts facts, ReplyWriter& writer)
    : context_(context),
      facts_(std::move(facts)),
      arrival_us_(context.clock.NowUs()),
      writer_(&writer) {
  if (IsRequestId(facts_.request_id_header)) {
    head_.request_id = facts_.request_id_header;
  }
}

GenerationCall::~GenerationCall() = default;

std::shared_ptr<GenerationCall> GenerationCall::Start(ServiceContext& context, CallFacts facts,
                                                      std::size_t bytes, ReadAsk read,
                                                      ReplyWriter& writer) {
  auto call = std::make_shared<GenerationCall>(context, std::move(facts), writer);
  context.open_calls.Add(call.get());
  const Status taken = context.workers.Do(bytes, [call, read = std::move(read)] {
    const Status status = call->Submit(read, call);
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
  Request& request = generation.request;
  head_.seed = request.sampling.seed;
  head_.logprobs = generation.logprobs;
  head_.cost = generation.cost;
  format_ = generation.format;
  assembler_.emplace(format_);
  request.id = context_.engine.NextRequestId();
  request.arrival_us = arrival_us_;
  request.stop.deadline_us = facts_.deadline_us;
  usage_.prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
  return SubmitUnder(wanted_id, std::move(request), self);
}

Result<Generation> GenerationCall::Prepare(const ReadAsk& read, std::string& wanted_id) {
  try {
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
    DSA_ASSIGN_OR_RETURN(Generation generation, Resolve(std::move(ask), *facts_.fields, context_));
    if (!wanted_id.empty()) {
      DSA_RETURN_IF_ERROR(CheckRequestId(wanted_id, facts_.fields->request_id));
    }
    return generation;
  } catch (const std::bad_alloc&) {
    return NoMemoryError();
  }
}

// An id in the message binds the engine; one in the header, which a proxy may have set for several
// requests, is taken where it is free.
Status GenerationCall::SubmitUnder(const std::string& wanted_id, Request&& request,
                                   const std::shared_ptr<GenerationCall>& self) {
  if (wanted_id.empty() && IsRequestId(facts_.request_id_header)) {
    Request proposed = request;
    proposed.external_id = facts_.request_id_header;
    Status status = context_.engine.Submit(std::move(proposed), self);
    if (status.ok() || status.error().code != ErrorCode::kAlreadyExists) {
      return status;
    }
  }
  head_.request_id = wanted_id.empty() ? context_.request_ids.Make() : wanted_id;
  request.external_id = head_.request_id;
  Status status = context_.engine.Submit(std::move(request), self);
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
  ReplyPart part = assembler_->Add(std::move(delta));
  const std::lock_guard lock(mutex_);
  usage_ = part.usage;
  finish_ = part.finish;
  if (writer_ == nullptr || closed_) {
    return;
  }
  // A part that only repeats the usage is worth no message, unless it is the last.
  if (has_pending_ || !part.empty() || part.finish) {
    Merge(pending_, std::move(part));
    has_pending_ = true;
  }
  DropIfSlow();
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
  writer_ = nullptr;
  pending_ = {};
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
      write_in_flight_ && has_pending_ && pending_.bytes() > limits.pending_bytes_max;
  if (stalled || behind) {
    Depart(Departure::kTooSlow);
    Cancel();
    writer_->Drop();  // without it the write in flight, and with it the call, would stay
  }
}

void GenerationCall::Advance() {
  if (writer_ == nullptr || closed_ || write_in_flight_ || !has_pending_) {
    return;
  }
  if (pending_.finish) {
    End();
    return;
  }
  const bool gone = departure_.load(std::memory_order_relaxed) != Departure::kNone;
  if (delivery_ == Delivery::kWhole || gone) {
    return;
  }
  const ReplyPart part = std::exchange(pending_, {});
  has_pending_ = false;
  begun_ = true;
  write_in_flight_ = true;
  write_started_us_ = context_.clock.NowUs();
  writer_->Write(part, head_);
}

// The engine's last delta has come and nothing is being written.
void GenerationCall::End() {
  // Read once: a client may leave at any moment, and an answer is either sent whole or not at all.
  const Departure departure = departure_.load(std::memory_order_relaxed);
  const Status status = FinalStatus(departure);
  // A stream that has begun gets its last message whatever the status.
  const bool begun = delivery_ == Delivery::kStream && (begun_ || !pending_.empty());
  const bool sends = departure == Departure::kNone && (status.ok() || begun);
  const ReplyPart part = std::exchange(pending_, {});
  has_pending_ = false;
  Close(status);
  writer_->Finish(sends ? &part : nullptr, head_, status);
}

// Never OK where the client has left.
Status GenerationCall::FinalStatus(Departure departure) const {
  const Error late{ErrorCode::kDeadlineExceeded, "deadline expired before the answer was sent"};
  switch (departure) {
    case Departure::kTooSlow:
      return Error{ErrorCode::kResourceExhausted, "client too slow: it does not read its stream"};
    case Departure::kCancelled: return Error{ErrorCode::kCancelled, "cancelled by the client"};
    case Departure::kDeadline: return pending_.error.value_or(late);
    case Departure::kNone: break;
  }
  switch (*pending_.finish) {
    case ReplyFinish::kStop:
    case ReplyFinish::kLength:
    case ReplyFinish::kToolCalls: return {};
    case ReplyFinish::kAborted:
      return context_.draining.load(std::memory_order_relaxed) ? Status(DrainingError()) : Status();
    case ReplyFinish::kCancelled: return Error{ErrorCode::kCancelled, "cancelled by the client"};
    case ReplyFinish::kDeadline: return pending_.error.value_or(late);
    case ReplyFinish::kError: break;
  }
  return pending_.error.value_or(Error{ErrorCode::kInternal, "the model failed"});
}

void GenerationCall::Close(const Status& status) {
  closed_ = true;
  outcome_ = status;
  write_started_us_ = context_.clock.NowUs();
}

void GenerationCall::Log(const Status& outcome) const {
  const double total_ms = static_cast<double>(context_.clock.NowUs() - arrival_us_) / kUsPerMs;
  dsa::Log(LogLevel::kInfo, "request",
           {{"id", head_.request_id},
            {"client_id", Escape(facts_.request_id_header, kLoggedBytesMax)},
            {"method", facts_.method},
            {"code", outcome.ok() ? "OK" : ToString(outcome.error().code)},
            {"error", outcome.ok() ? "" : Escape(outcome.error().message, kLoggedBytesMax)},
            {"finish", finish_ ? ToString(*finish_) : std::string_view("none")},
            {"prompt_tokens", usage_.prompt_tokens},
            {"cache_hit_tokens", usage_.cache_hit_tokens},
            {"completion_tokens", usage_.completion_tokens},
            {"queue_ms", static_cast<double>(usage_.queue_us) / kUsPerMs},
            {"prefill_ms", static_cast<double>(usage_.prefill_us) / kUsPerMs},
            {"decode_ms", static_cast<double>(usage_.decode_us) / kUsPerMs},
            {"total_ms", total_ms}});
}

}  // namespace dsa
