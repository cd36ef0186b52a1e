#include "server/grpc/unary_call.h"

#include "common/log.h"
#include "server/api/errors.h"
#include "server/grpc/call_info.h"

#include <atomic>
#include <new>
#include <utility>

namespace dsa {
namespace {

class UnaryReactor final : public grpc::ServerUnaryReactor {
 public:
  UnaryReactor(const UnaryCall& call, UnaryAnswer answer)
      : call_(call), answer_(std::move(answer)), start_us_(call.context.clock.NowUs()) {}

  void Start() {
    const Status taken = call_.context.workers.Do(call_.request.Length(), [this] { End(Work()); });
    if (!taken.ok()) {
      End(taken);
    }
  }

  void OnCancel() override { cancelled_.store(true, std::memory_order_relaxed); }
  void OnDone() override { delete this; }

 private:
  Status Work() {
    if (cancelled_.load(std::memory_order_relaxed)) {
      return Error{ErrorCode::kCancelled, "cancelled by the client"};
    }
    try {
      DSA_ASSIGN_OR_RETURN(call_.response, answer_(call_.request));
    } catch (const std::bad_alloc&) {
      return NoMemoryError();
    }
    return {};
  }

  // Once, and the last that touches the reactor.
  void End(const Status& status) {
    const grpc::Status answer = ToGrpc(status);
    const std::string request_id = ClientRequestId(call_.rpc);
    if (IsRequestId(request_id)) {
      // Where the calls of chat and completion have it, too.
      if (status.ok()) {
        call_.rpc.AddInitialMetadata(kRequestIdHeader, request_id);
      } else {
        call_.rpc.AddTrailingMetadata(kRequestIdHeader, request_id);
      }
    }
    if (answer.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
      call_.rpc.AddTrailingMetadata(kRetryPushbackHeader, kRetryPushbackMs);
    }
    const double total_ms = static_cast<double>(call_.context.clock.NowUs() - start_us_) / 1000.0;
    Log(LogLevel::kInfo, "request",
        {{"id", Escape(request_id, kLoggedBytesMax)},
         {"method", call_.name},
         {"code", CodeName(answer.error_code())},
         {"error", Escape(answer.error_message(), kLoggedBytesMax)},
         {"total_ms", total_ms}});
    Finish(answer);
  }

  const UnaryCall call_;
  const UnaryAnswer answer_;
  const MonotonicUs start_us_;
  std::atomic<bool> cancelled_{false};  // a hint: nothing is ordered by it
};

}  // namespace

grpc::ServerUnaryReactor* AnswerUnary(const UnaryCall& call, UnaryAnswer answer) {
  auto* reactor = new UnaryReactor(call, std::move(answer));
  reactor->Start();
  return reactor;
}

}  // namespace dsa
