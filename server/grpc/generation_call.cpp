#include "server/grpc/generation_call.h"

#include "common/log.h"
#include "server/grpc/call_info.h"
#include "server/grpc/wire.h"

#include <utility>

namespace dsa {
namespace {

constexpr double kUsPerMs = 1000.0;
// A client whose deadline has passed cancels its call this much before our clock says so: timers
// count in milliseconds, and from a second on the wire has a timeout rounded up to two or three
// digits, so that ours is up to a hundredth longer than the client's.
constexpr std::int64_t kDeadlineRoundingUs = 2'000;
constexpr std::int64_t kDeadlineRoundingShare = 100;

}  // namespace

GenerationCall::GenerationCall(const GenerationMethod& method, ServiceContext& context,
                               grpc::CallbackServerContext& rpc, GenerationTransport& transport)
    : method_(method),
      context_(context),
      arrival_us_(context.clock.NowUs()),
      deadline_us_(DeadlineUs(rpc, context.clock)),
      header_id_(ClientRequestId(rpc)),
      rpc_(&rpc),
      transport_(&transport) {
  if (IsRequestId(header_id_)) {
    head_.request_id = header_id_;
  }
}

GenerationCall::~GenerationCall() = default;

std::shared_ptr<GenerationCall> GenerationCall::Start(const GenerationMethod& method,
                                                      ServiceContext& context,
                                                      grpc::CallbackServerContext& rpc,
                                                      const grpc::ByteBuffer& request,
                                                      GenerationTransport& transport) {
  auto call = std::make_shared<GenerationCall>(method, context, rpc, transport);
  context.open_calls.Add(call.get());
  const Status taken = context.workers.Do(request.Length(), [call, &request] {
    const Status status = call->Submit(request, call);
    if (!status.ok()) {
      call->Refuse(status.error());
    }
  });
  if (!taken.ok()) {
    call->Refuse(taken.error());
  }
  return call;
}

Status GenerationCall::Submit(const grpc::ByteBuffer& request,
                              const std::shared_ptr<GenerationCall>& self) {
  if (context_.draining.load(std::memory_order_relaxed)) {
    return DrainingError();
  }
  const Departure departure = departure_.load(std::memory_order_relaxed);
  if (departure != Departure::kNone) {
    return FinalStatus(departure);  // while it waited to be read
  }
  std::string wanted;
  Result<Generation> parsed = method_.parse(request, context_, wanted);
  if (IsRequestId(wanted)) {
    head_.request_id = wanted;
  }
  DSA_ASSIGN_OR_RETURN(Generation generation, std::move(parsed));
  DSA_RETURN_IF_ERROR(ClaimId(wanted));
  Request& submitted = generation.request;
  head_.seed = submitted.sampling.seed;
  head_.logprobs = generation.logprobs;
  format_ = generation.format;
  assembler_.emplace(format_);
  submitted.id = context_.engine.NextRequestId();
  submitted.external_id = head_.request_id;
  submitted.arrival_us = arrival_us_;
  submitted.stop.deadline_us = deadline_us_;
  usage_.prompt_tokens = static_cast<std::int64_t>(submitted.prompt.size());
  return context_.engine.Submit(std::move(submitted), self);
}

Status GenerationCall::ClaimId(const std::string& wanted) {
  if (!wanted.empty()) {
    DSA_ASSIGN_OR_RETURN(head_.request_id, context_.live.Claim(wanted, "request_id"));
  } else {
    head_.request_id = context_.live.ClaimProposed(header_id_);
  }
  claimed_ = true;
  return {};
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
  transport_->Fail(error);
}

void GenerationCall::OnDelta(TokenDelta&& delta) {
  ReplyPart part = assembler_->Add(std::move(delta));
  const std::lock_guard lock(mutex_);
  usage_ = part.usage;
  finish_ = part.finish;
  if (transport_ == nullptr || closed_) {
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
  Advance();
}

// Where the deadline passed the engine ends the request by it, and so says where it stood then.
void GenerationCall::OnCancel() {
  const MonotonicUs now_us = context_.clock.NowUs();
  const bool late =
      deadline_us_ &&
      now_us + kDeadlineRoundingUs + (*deadline_us_ - arrival_us_) / kDeadlineRoundingShare >=
          *deadline_us_;
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
  transport_ = nullptr;
  rpc_ = nullptr;
  pending_ = {};
}

void GenerationCall::Look() {
  const std::lock_guard lock(mutex_);
  DropIfSlow();
}

void GenerationCall::Depart(Departure departure) {
  Departure none = Departure::kNone;
  departure_.compare_exchange_strong(none, departure, std::memory_order_relaxed);
}

// A write in flight ends when the client reads or its connection dies (keepalive), which a client
// that is alive and does not read never lets happen.
void GenerationCall::DropIfSlow() {
  if (transport_ == nullptr || departure_.load(std::memory_order_relaxed) != Departure::kNone) {
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
    rpc_->TryCancel();  // without it the write in flight, and with it the call, would stay
  }
}

void GenerationCall::Advance() {
  if (transport_ == nullptr || closed_ || write_in_flight_ || !has_pending_) {
    return;
  }
  if (pending_.finish) {
    End();
    return;
  }
  const bool gone = departure_.load(std::memory_order_relaxed) != Departure::kNone;
  if (method_.delivery == Delivery::kWhole || gone) {
    return;
  }
  if (!pending_.empty()) {
    SendHeaders();
  }
  buffer_ = method_.encode(pending_, head_, context_);
  pending_ = {};
  has_pending_ = false;
  write_in_flight_ = true;
  write_started_us_ = context_.clock.NowUs();
  transport_->Write(buffer_);
}

// The engine's last delta has come and nothing is being written.
void GenerationCall::End() {
  // Read once: a client may leave at any moment, and an answer is either sent whole or not at all.
  const Departure departure = departure_.load(std::memory_order_relaxed);
  const Status status = FinalStatus(departure);
  // A stream that has begun gets its last message whatever the status.
  const bool begun = method_.delivery == Delivery::kStream && (headers_sent_ || !pending_.empty());
  const bool sends = departure == Departure::kNone && (status.ok() || begun);
  if (sends) {
    SendHeaders();
    buffer_ = method_.encode(pending_, head_, context_);
  }
  pending_ = {};
  has_pending_ = false;
  Close(status);
  if (sends) {
    transport_->WriteAndFinish(buffer_, status);
  } else {
    transport_->Fail(status.error());
  }
}

// With the first token only: a header before it would keep clients from retrying an error.
void GenerationCall::SendHeaders() {
  if (!headers_sent_) {
    rpc_->AddInitialMetadata(kRequestIdHeader, head_.request_id);
    headers_sent_ = true;
  }
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

// The status is decided and the id free: who sees the end may use it again.
void GenerationCall::Close(const Status& status) {
  closed_ = true;
  outcome_ = status;
  write_started_us_ = context_.clock.NowUs();
  if (!headers_sent_ && !head_.request_id.empty()) {
    rpc_->AddTrailingMetadata(kRequestIdHeader, head_.request_id);
  }
  if (!status.ok() && status.error().code == ErrorCode::kResourceExhausted) {
    rpc_->AddTrailingMetadata(kRetryPushbackHeader, kRetryPushbackMs);
  }
  if (claimed_) {
    context_.live.Release(head_.request_id);
  }
}

void GenerationCall::Log(const Status& outcome) const {
  const grpc::Status status = ToGrpc(outcome);
  const double total_ms = static_cast<double>(context_.clock.NowUs() - arrival_us_) / kUsPerMs;
  dsa::Log(LogLevel::kInfo, "request",
           {{"id", head_.request_id},
            {"client_id", Escape(header_id_, kLoggedBytesMax)},
            {"method", method_.name},
            {"code", CodeName(status.error_code())},
            {"error", Escape(status.error_message(), kLoggedBytesMax)},
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
