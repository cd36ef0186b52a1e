#include "server/grpc/unary_call.h"

#include "common/log.h"
#include "server/api/errors.h"
#include "server/grpc/call_info.h"

#include <atomic>
#include <new>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

class UnaryReactor final : public grpc::ServerUnaryReactor, private OpenCall {
 public:
  UnaryReactor(const UnaryCall& call, UnaryAnswer answer)
      : call_(call), answer_(std::move(answer)), start_us_(call.context.clock.NowUs()) {}

  void Start() {
    call_.context.open_calls.Add(this);
    const Status taken = call_.context.workers.Do(call_.request.Length(), [this] { End(Work()); });
    if (!taken.ok()) {
      End(taken);
    }
  }

  void OnCancel() override { cancelled_.store(true, std::memory_order_relaxed); }
  void OnDone() override {
    call_.context.open_calls.Remove(this);
    call_.context.answers.Give(taken_bytes_);
    Log();
    delete this;
  }

 private:
  Status Work() {
    if (cancelled_.load(std::memory_order_relaxed)) {
      return CancelledError();
    }
    try {
      DSA_ASSIGN_OR_RETURN(const grpc::ByteBuffer response, answer_(call_.request));
      const auto bytes = static_cast<std::int64_t>(response.Length());
      const std::int64_t bytes_max = call_.context.slow_client.answer_bytes_max;
      if (!call_.context.answers.Take(bytes, bytes_max)) {
        return Error{
            ErrorCode::kResourceExhausted,
            fmt::format("too many answers wait to be read: {} bytes more, at most {} of all", bytes,
                        bytes_max)};
      }
      taken_bytes_ = bytes;
      call_.response = response;  // which shares the bytes
    } catch (const std::bad_alloc&) {
      return NoMemoryError();
    }
    return {};
  }

  // Once; `this` may be gone behind it.
  void End(const Status& status) {
    outcome_ = ToGrpc(status);
    const std::string request_id = ClientRequestId(call_.rpc);
    AddMetadata(call_.rpc, outcome_.ok() ? Place::kFront : Place::kBehind,
                {.request_id = IsRequestId(request_id) ? request_id : "",
                 .instance = call_.context.server.instance});
    if (!status.ok()) {
      AddRetryMetadata(call_.rpc, status.error());
    }
    const grpc::Status answer = outcome_;
    ended_us_.store(call_.context.clock.NowUs(), std::memory_order_release);
    Finish(answer);
  }

  // Thread of the open calls.
  void Look() override {
    const MonotonicUs ended_us = ended_us_.load(std::memory_order_acquire);
    const bool stalled = ended_us != 0 && call_.context.clock.NowUs() - ended_us >=
                                              call_.context.slow_client.stalled_us_max;
    if (stalled && !dropped_.exchange(true, std::memory_order_relaxed)) {
      call_.rpc.TryCancel();
    }
  }

  void Log() const {
    grpc::Status outcome = outcome_;
    if (dropped_.load(std::memory_order_relaxed)) {
      outcome = {grpc::StatusCode::RESOURCE_EXHAUSTED, "client too slow: it does not read"};
    } else if (cancelled_.load(std::memory_order_relaxed)) {
      outcome = {grpc::StatusCode::CANCELLED, "cancelled by the client"};
    }
    const double total_ms = static_cast<double>(call_.context.clock.NowUs() - start_us_) / 1000.0;
    dsa::Log(LogLevel::kInfo, "request",
             {{"id", Escape(ClientRequestId(call_.rpc), kLoggedBytesMax)},
              {"method", call_.name},
              {"code", CodeName(outcome.error_code())},
              {"error", Escape(outcome.error_message(), kLoggedBytesMax)},
              {"total_ms", total_ms}});
  }

  const UnaryCall call_;
  const UnaryAnswer answer_;
  const MonotonicUs start_us_;
  // Set before Finish.
  std::int64_t taken_bytes_ = 0;
  grpc::Status outcome_;
  std::atomic<MonotonicUs> ended_us_{0};  // 0: no answer is on its way
  std::atomic<bool> dropped_{false};
  std::atomic<bool> cancelled_{false};  // a hint: nothing is ordered by it
};

}  // namespace

grpc::ServerUnaryReactor* AnswerUnary(const UnaryCall& call, UnaryAnswer answer) {
  auto* reactor = new UnaryReactor(call, std::move(answer));
  reactor->Start();
  return reactor;
}

}  // namespace dsa
