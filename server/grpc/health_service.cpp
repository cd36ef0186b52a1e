#include "server/grpc/health_service.h"

#include "proto/health.grpc.pb.h"
#include "server/grpc/reactors.h"
#include "server/grpc/wire.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <grpcpp/support/server_callback.h>

namespace dsa {
namespace {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using State = HealthCheckResponse::ServingStatus;

constexpr std::string_view kServerName;
constexpr std::string_view kReadinessName = "readiness";
constexpr std::string_view kLivenessName = "liveness";

// At once, on the thread that everybody's calls come through.
Status Parse(const grpc::ByteBuffer& request, HealthCheckRequest& message) {
  constexpr std::size_t kRequestBytesMax = 4096;
  if (request.Length() > kRequestBytesMax) {
    return InvalidArgument(fmt::format("HealthCheckRequest: {} bytes, at most {}", request.Length(),
                                       kRequestBytesMax));
  }
  return ParseMessage(request, UnknownFields::kRefused, message);
}

grpc::ByteBuffer Encode(State state) {
  HealthCheckResponse response;
  response.set_status(state);
  return Serialize(response);
}

}  // namespace

// The states, and who watches them.
class HealthService::Board final {
 public:
  explicit Board(std::vector<std::string> services) : ready_names_(std::move(services)) {
    ready_names_.emplace_back(kServerName);
    ready_names_.emplace_back(kReadinessName);
  }

  // nullopt: no such name.
  std::optional<State> StateOf(std::string_view name) {
    const std::lock_guard lock(mutex_);
    return StateHeld(name);
  }

  void BeginDrain() { Set(draining_, true); }
  void SetStalled(bool stalled) { Set(stalled_, stalled); }
  void EndWatches() { Set(ended_, true); }
  void Join(Watch* watch);
  void Leave(Watch* watch);

 private:
  friend class HealthService::Watch;

  void Set(bool& state, bool value);
  std::optional<State> StateHeld(std::string_view name) const {
    if (name == kLivenessName) {
      return HealthCheckResponse::SERVING;
    }
    if (std::find(ready_names_.begin(), ready_names_.end(), name) == ready_names_.end()) {
      return std::nullopt;
    }
    return draining_ || stalled_ ? HealthCheckResponse::NOT_SERVING : HealthCheckResponse::SERVING;
  }

  std::vector<std::string> ready_names_;  // constant after construction
  std::mutex mutex_;
  // Guarded by mutex_, as is what the watches say of themselves:
  bool draining_ = false;
  bool stalled_ = false;
  bool ended_ = false;
  std::vector<Watch*> watches_;
};

// One Watch call.  Deletes itself in OnDone.
class HealthService::Watch final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  Watch(std::shared_ptr<Board> board, std::string name)
      : board_(std::move(board)), name_(std::move(name)) {
    board_->Join(this);
  }

  // The board's lock is held.
  void Advance() {
    if (finished_ || write_in_flight_) {
      return;
    }
    const State state = board_->StateHeld(name_).value_or(HealthCheckResponse::SERVICE_UNKNOWN);
    if (told_ != state) {
      told_ = state;
      buffer_ = Encode(state);
      write_in_flight_ = true;
      StartWrite(&buffer_);
    } else if (board_->ended_) {
      FinishOnce(ToGrpc(Error{ErrorCode::kUnavailable, "draining: the server stops"}));
    }
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(board_->mutex_);
    write_in_flight_ = false;
    if (!ok) {
      FinishOnce(grpc::Status::CANCELLED);
    }
    Advance();
  }
  void OnCancel() override {
    const std::lock_guard lock(board_->mutex_);
    FinishOnce(grpc::Status::CANCELLED);
  }
  void OnDone() override {
    board_->Leave(this);
    delete this;
  }

 private:
  void FinishOnce(const grpc::Status& status) {
    if (!finished_) {
      finished_ = true;
      Finish(status);
    }
  }

  const std::shared_ptr<Board> board_;
  const std::string name_;
  // Guarded by the board's lock:
  std::optional<State> told_;
  bool write_in_flight_ = false;
  bool finished_ = false;
  grpc::ByteBuffer buffer_;  // of the write in flight
};

void HealthService::Board::Set(bool& state, bool value) {
  const std::lock_guard lock(mutex_);
  state = value;
  for (Watch* watch : watches_) {
    watch->Advance();
  }
}

void HealthService::Board::Join(Watch* watch) {
  const std::lock_guard lock(mutex_);
  watches_.push_back(watch);
  watch->Advance();
}

void HealthService::Board::Leave(Watch* watch) {
  const std::lock_guard lock(mutex_);
  std::erase(watches_, watch);
}

class HealthService::Service final : public Health::WithRawCallbackMethod_Check<
                                         Health::WithRawCallbackMethod_Watch<Health::Service>> {
 public:
  explicit Service(std::shared_ptr<Board> board) : board_(std::move(board)) {}

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* rpc, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    grpc::ServerUnaryReactor* reactor = rpc->DefaultReactor();
    HealthCheckRequest message;
    const Status parsed = Parse(*request, message);
    const std::optional<State> state = board_->StateOf(message.service());
    if (!parsed.ok()) {
      reactor->Finish(ToGrpc(parsed.error()));
    } else if (!state) {
      reactor->Finish(ToGrpc(Error{ErrorCode::kNotFound, "service: no such name"}));
    } else {
      *response = Encode(*state);
      reactor->Finish(grpc::Status::OK);
    }
    return reactor;
  }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Watch(grpc::CallbackServerContext* /*rpc*/,
                                                    const grpc::ByteBuffer* request) override {
    HealthCheckRequest message;
    const Status parsed = Parse(*request, message);
    if (!parsed.ok()) {
      return RefuseStream(parsed.error());
    }
    return new HealthService::Watch(board_, message.service());
  }

 private:
  const std::shared_ptr<Board> board_;
};

HealthService::HealthService(std::vector<std::string> services)
    : board_(std::make_shared<Board>(std::move(services))),
      service_(std::make_unique<Service>(board_)) {}

HealthService::~HealthService() = default;

grpc::Service& HealthService::service() {
  return *service_;
}

void HealthService::BeginDrain() {
  board_->BeginDrain();
}

void HealthService::SetStalled(bool stalled) {
  board_->SetStalled(stalled);
}

void HealthService::EndWatches() {
  board_->EndWatches();
}

}  // namespace dsa
