#include "server/api/generation_call.h"

#include "common/log.h"
#include "server/api/call_info.h"
#include "server/api/wire.h"

#include <utility>

namespace dsa {
namespace {

constexpr std::int64_t kStalledBytesMin = std::int64_t{64} << 10;  // below, waiting costs nothing
constexpr double kUsPerMs = 1000.0;

}  // namespace

GenerationCall::GenerationCall(const GenerationMethod& method, ServiceContext& context,
                               grpc::CallbackServerContext& rpc, GenerationTransport& transport)
    : method_(method),
      context_(context),
      arrival_us_(context.clock.NowUs()),
      rpc_(&rpc),
      transport_(&transport) {
  const std::string from_header = ClientRequestId(rpc);
  if (IsRequestId(from_header)) {
    head_.request_id = from_header;
  }
}

GenerationCall::~GenerationCall() = default;

std::shared_ptr<GenerationCall> GenerationCall::Start(const GenerationMethod& method,
                                                      ServiceContext& context,
                                                      grpc::CallbackServerContext& rpc,
                                                      const grpc::ByteBuffer& request,
                                                      GenerationTransport& transport) {
  auto call = std::make_shared<GenerationCall>(method, context, rpc, transport);
  const Status status = call->Submit(request, call);
  if (!status.ok()) {
    call->Refuse(status.error());
  }
  return call;
}

Status GenerationCall::Submit(const grpc::ByteBuffer& request,
                              const std::shared_ptr<GenerationCall>& self) {
  if (context_.draining.load(std::memory_order_relaxed)) {
    return DrainingError();
  }
  deadline_us_ = DeadlineUs(*rpc_, context_.clock);
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
  assembler_.emplace(generation.format);
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
    DSA_ASSIGN_OR_RETURN(head_.request_id,
                         context_.live.Claim(ClientRequestId(*rpc_), kRequestIdHeader));
  }
  claimed_ = true;
  return {};
}

void GenerationCall::Refuse(const Error& error) {
  const std::lock_guard lock(mutex_);
  const grpc::Status status = ToGrpc(error);
  Close(status);
  transport_->Finish(status);
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
  const std::lock_guard lock(mutex_);
  write_in_flight_ = false;
  if (!ok) {
    Cancel();  // the client is gone; the engine's last delta ends the call
  }
  Advance();
}

void GenerationCall::OnCancel() {
  Cancel();
}

void GenerationCall::OnDone() {
  const std::lock_guard lock(mutex_);
  transport_ = nullptr;
  rpc_ = nullptr;
  pending_ = {};
}

// A write in flight always ends: the client reads, or its connection dies (keepalive) and the
// write fails.  Until then the parts that wait are bounded.
void GenerationCall::DropIfSlow() {
  if (failure_ || !write_in_flight_ || !has_pending_) {
    return;
  }
  const std::int64_t bytes = pending_.bytes();
  const bool stalled =
      context_.clock.NowUs() - write_started_us_ > context_.slow_client.stalled_us_max;
  if (bytes <= context_.slow_client.pending_bytes_max && !(stalled && bytes > kStalledBytesMin)) {
    return;
  }
  failure_ = Error{ErrorCode::kResourceExhausted, "client too slow: it does not read its stream"};
  Cancel();
  rpc_->TryCancel();  // without it the write in flight, and with it the call, would stay
}

void GenerationCall::Advance() {
  if (transport_ == nullptr || closed_ || write_in_flight_ || !has_pending_) {
    return;
  }
  const bool last = pending_.finish.has_value();
  if (!last && (method_.delivery == Delivery::kWhole || cancelled())) {
    return;
  }
  // An answer that has begun gets its last message whatever the status.
  const bool something = !pending_.empty() || (last && (headers_sent_ || FinalStatus().ok()));
  if (!headers_sent_ && something) {
    // Only now: a header before the first token would keep clients from retrying an error.
    rpc_->AddInitialMetadata(kRequestIdHeader, head_.request_id);
    headers_sent_ = true;
  }
  if (!last) {
    buffer_ = method_.encode(pending_, head_, context_);
    pending_ = {};
    has_pending_ = false;
    write_in_flight_ = true;
    write_started_us_ = context_.clock.NowUs();
    transport_->Write(buffer_);
    return;
  }
  const grpc::Status status = FinalStatus();
  buffer_ = method_.encode(pending_, head_, context_);
  pending_ = {};
  has_pending_ = false;
  Close(status);
  if (something && !cancelled()) {
    transport_->WriteAndFinish(buffer_, status);
  } else {
    transport_->Finish(status);
  }
}

grpc::Status GenerationCall::FinalStatus() {
  if (failure_) {
    return ToGrpc(*failure_);
  }
  switch (*pending_.finish) {
    case ReplyFinish::kStop:
    case ReplyFinish::kLength:
    case ReplyFinish::kToolCalls: return grpc::Status::OK;
    case ReplyFinish::kAborted:
      if (context_.draining.load(std::memory_order_relaxed)) {
        return ToGrpc(DrainingError());
      }
      return grpc::Status::OK;
    case ReplyFinish::kCancelled:
      // gRPC itself cancels a call whose deadline passes.
      if (!deadline_us_ || context_.clock.NowUs() < *deadline_us_) {
        return ToGrpc({ErrorCode::kCancelled, "cancelled by the client"});
      }
      [[fallthrough]];
    case ReplyFinish::kDeadline:
      return ToGrpc(pending_.error.value_or(
          Error{ErrorCode::kDeadlineExceeded, "the deadline passed while generating"}));
    case ReplyFinish::kError:
      return ToGrpc(pending_.error.value_or(Error{ErrorCode::kInternal, "the model failed"}));
  }
  return ToGrpc({ErrorCode::kInternal, "the model failed"});
}

void GenerationCall::Close(const grpc::Status& status) {
  closed_ = true;
  if (!headers_sent_ && !head_.request_id.empty()) {
    rpc_->AddTrailingMetadata(kRequestIdHeader, head_.request_id);
  }
  if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    rpc_->AddTrailingMetadata(kRetryPushbackHeader, kRetryPushbackMs);
  }
  Log(status);
  if (claimed_) {
    context_.live.Release(head_.request_id);
  }
}

void GenerationCall::Log(const grpc::Status& status) const {
  const double total_ms = static_cast<double>(context_.clock.NowUs() - arrival_us_) / kUsPerMs;
  dsa::Log(LogLevel::kInfo, "request",
           {{"id", head_.request_id},
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
