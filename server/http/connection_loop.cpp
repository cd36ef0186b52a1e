#include "server/http/connection_loop.h"

#include "server/http/last_bytes.h"
#include "server/http/loop_probe.h"
#include "server/http/response_head.h"
#include "server/http/session_exchange.h"
#include "server/http/session_timer.h"

#include <array>
#include <optional>
#include <set>
#include <system_error>
#include <thread>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>
#include <sys/socket.h>

namespace dsa {
namespace {

namespace asio = boost::asio;
using Protocol = asio::generic::stream_protocol;
using ErrorOf = boost::system::error_code;

constexpr std::size_t kReadBytes = std::size_t{16} << 10;
// What a client may send ahead of its answer; more is left to its socket, and its end is then seen
// by the next write only.
constexpr std::size_t kAheadBytesMax = std::size_t{64} << 10;
// A body beyond this is read in the one place that there is for large ones.
constexpr std::size_t kLargeBodyBytes = std::size_t{128} << 10;
// An answer up to here is given however much waits to be read by other clients.
constexpr std::size_t kSmallAnswerBytesMax = std::size_t{16} << 10;

constexpr int kTimeoutStatus = 408;
constexpr int kUnavailableStatus = 503;

class Session;

// A thread's own.
struct Sessions {
  asio::io_context context{1};
  std::set<Session*> all;
};

// One connection.  Its loop's thread.
class Session final : public std::enable_shared_from_this<Session> {
 public:
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  Session(ConnectionContext& context, Sessions& sessions, Protocol::socket socket)
      : context_(context),
        sessions_(sessions),
        socket_(std::move(socket)),
        timer_(sessions.context),
        place_(context.large_bodies),
        last_bytes_(context.config.body_bytes_max, context.config.body_ms_max) {}

  void Open() {
    sessions_.all.insert(this);
    BecomeIdle();
  }
  void CloseIfIdle() {
    if (phase_ == Phase::kIdle) {
      Close();
    }
  }
  void Abandon() {
    CloseSocket();
    SeeGone();
  }

  // Of the request that is being answered.
  void Respond(const HttpResponse& response) {
    const auto bytes = static_cast<std::int64_t>(response.body.size());
    const bool has_room =
        context_.memory_bytes.load(std::memory_order_relaxed) - counted_bytes_ + bytes <=
        context_.config.memory_bytes_max;
    if (response.body.size() > kSmallAnswerBytesMax && !has_room) {
      const HttpFault fault{.status = kUnavailableStatus,
                            .message = fmt::format("more than {} bytes of answers wait to be read",
                                                   context_.config.memory_bytes_max)};
      Respond({.status = fault.status, .body = context_.fault_body(fault)});
      return;
    }
    const std::string length = fmt::format("Content-Length: {}\r\n", response.body.size());
    Arm(context_.config.write_ms_max);
    const std::string_view body = head_only_ ? std::string_view() : response.body;
    Write(MakeHead(response, length).append(body), Last::kYes);
  }
  void Begin(const HttpResponse& head) {
    // A client of HTTP/1.0 knows no chunks: the connection's end is the body's.
    keep_alive_ = keep_alive_ && chunked_;
    const std::string_view length = chunked_ ? "Transfer-Encoding: chunked\r\n" : "";
    Write(MakeHead(head, length) + Chunk(head.body), Last::kNo);
  }
  void Send(std::string_view bytes) { Write(Chunk(bytes), Last::kNo); }
  void End(std::string_view bytes) {
    Write(Chunk(bytes) + (chunked_ ? std::string(kLastChunk) : ""), Last::kYes);
  }
  void ReleaseBody() {
    place_.Give();
    Count(static_cast<std::int64_t>(input_.size() + out_.size()));
  }
  void Drop() { CloseSocket(); }

  // Any thread: does `work` on the loop's, unless request `number` has been answered by then.
  template <typename Work>
  void Post(std::uint64_t number, Work work) {
    asio::post(sessions_.context,
               [self = shared_from_this(), number, work = std::move(work)]() mutable {
                 if (self->phase_ == Phase::kAnswering && self->request_number_ == number) {
                   work(*self);
                 }
               });
  }

 private:
  // kAhead: answered, and what came ahead is to be read next.
  enum class Phase : std::uint8_t { kIdle, kReading, kAnswering, kAhead, kLingering, kClosed };
  enum class Last : std::uint8_t { kNo, kYes };

  std::string MakeHead(const HttpResponse& response, std::string_view length) {
    keep_alive_ = keep_alive_ && !context_.draining.load(std::memory_order_relaxed);
    return ResponseHead(response, context_.config.header_lines + std::string(length), keep_alive_);
  }
  std::string Chunk(std::string_view bytes) const {
    return chunked_ ? AsChunk(bytes) : std::string(bytes);
  }

  void Arm(std::int64_t limit_ms) {
    timer_.Arm(limit_ms, [self = shared_from_this()] { self->OnTimeout(); });
  }
  void OnTimeout() {
    if (phase_ == Phase::kReading && place_.is_awaited()) {
      Refuse({.status = kUnavailableStatus, .message = "other large requests are being read"});
    } else if (phase_ == Phase::kReading) {
      Refuse({.status = kTimeoutStatus, .message = "the request did not come in time"});
    } else if (phase_ == Phase::kAnswering) {
      CloseSocket();
    } else if (phase_ == Phase::kLingering && last_bytes_.GoesOn()) {
      Arm(LastBytes::kSilentMsMax);
    } else {
      Close();
    }
  }

  void BecomeIdle() {
    phase_ = Phase::kIdle;
    Arm(context_.config.idle_ms_max);
    WaitReadable();
  }

  void WaitReadable() {
    const bool is_held = place_.is_awaited() && phase_ == Phase::kReading;
    if (waiting_ || is_held || !socket_.is_open()) {
      return;
    }
    waiting_ = true;
    socket_.async_wait(Protocol::socket::wait_read,
                       [self = shared_from_this()](const ErrorOf& error) {
                         self->waiting_ = false;
                         if (error) {
                           self->SeeGone();
                         } else {
                           self->Read();
                         }
                       });
  }

  void Read() {
    if (phase_ == Phase::kClosed || !socket_.is_open()) {
      return;
    }
    std::array<char, kReadBytes> bytes;
    ErrorOf error;
    const std::size_t count = socket_.read_some(asio::buffer(bytes), error);
    if (error == asio::error::would_block || error == asio::error::try_again) {
      WaitReadable();
      return;
    }
    if (error) {
      if (error != asio::error::eof) {
        CloseSocket();
      }
      SeeGone();
      return;
    }
    if (phase_ == Phase::kLingering) {
      last_bytes_.Take(count) ? WaitReadable() : Close();
      return;
    }
    input_.append(bytes.data(), count);
    if (!IsAhead()) {
      Parse();
    }
    WaitWithin();
  }

  // Whether what comes now is for a later request.
  bool IsAhead() const { return phase_ == Phase::kAnswering || phase_ == Phase::kAhead; }
  void WaitWithin() {
    if (!IsAhead() || input_.size() < kAheadBytesMax) {
      WaitReadable();
    }
  }

  // The client has closed its side, or the connection is broken.
  void SeeGone() {
    keep_alive_ = false;
    if (phase_ != Phase::kAnswering) {
      Close();
    } else if (call_ != nullptr && std::exchange(hears_gone_, false)) {
      call_->OnGone();
    }
  }

  void Parse() {
    if (!parser_) {
      parser_.emplace(RequestLimits{.header_bytes_max = context_.config.header_bytes_max,
                                    .body_bytes_max = context_.config.body_bytes_max});
    }
    const bool had_header = parser_->header_done();
    input_.erase(0, parser_->Feed(input_));
    Count(static_cast<std::int64_t>(parser_->body_bytes() + input_.size()));
    if (!parser_->has_begun()) {
      BecomeIdle();  // a few times at most: empty lines have a limit
      return;
    }
    if (phase_ != Phase::kReading) {
      phase_ = Phase::kReading;
      Arm(context_.config.header_ms_max);
    }
    if (parser_->fault()) {
      Refuse(HttpFault(*parser_->fault()));
    } else if (context_.memory_bytes.load(std::memory_order_relaxed) >
               context_.config.memory_bytes_max) {
      Refuse({.status = kUnavailableStatus,
              .message = fmt::format("more than {} bytes of requests are being read",
                                     context_.config.memory_bytes_max)});
    } else if (parser_->done()) {
      Dispatch();
    } else if (!had_header && parser_->header_done()) {
      Arm(context_.config.body_ms_max);
      if (parser_->wants_continue()) {
        // Nothing else is being written, so that these few bytes always fit.
        ErrorOf ignored;
        socket_.write_some(asio::buffer(std::string_view("HTTP/1.1 100 Continue\r\n\r\n")),
                           ignored);
      }
    } else if (place_.is_none() && parser_->body_bytes() > kLargeBodyBytes) {
      TakePlace();
    }
  }

  // Nothing more is read until the place is there; the time for the body goes on.
  void TakePlace() {
    place_.Take([weak = weak_from_this()] {
      const std::shared_ptr<Session> self = weak.lock();
      if (self != nullptr) {
        asio::post(self->sessions_.context, [self] { self->OnPlace(); });
      }
      return self != nullptr;
    });
  }
  void OnPlace() {
    place_.BeGranted();
    const bool still_reads = phase_ == Phase::kReading;  // neither refused nor gone
    still_reads ? WaitReadable() : place_.Give();
  }

  void StartAnswer(bool keep_alive, bool chunked, bool head_only) {
    timer_.Disarm();
    head_only_ = head_only;
    phase_ = Phase::kAnswering;
    keep_alive_ = keep_alive;
    chunked_ = chunked;
    hears_gone_ = true;
    ++request_number_;
  }

  void Dispatch();

  void Refuse(const HttpFault& fault) {
    StartAnswer(false, true, false);
    parser_.reset();
    Respond({.status = fault.status, .body = context_.fault_body(fault)});
  }

  void Write(std::string bytes, Last last) {
    place_.Give();  // what has an answer was read
    out_ = std::move(bytes);
    hears_gone_ = hears_gone_ && last == Last::kNo;
    Count(static_cast<std::int64_t>(input_.size() + out_.size()));
    asio::async_write(socket_, asio::buffer(out_),
                      [self = shared_from_this(), last](const ErrorOf& error, std::size_t) {
                        self->OnWritten(!error, last);
                      });
  }

  void OnWritten(bool ok, Last last) {
    if (!ok) {
      CloseSocket();
    }
    out_ = {};
    Count(static_cast<std::int64_t>(input_.size()));
    if (last == Last::kNo) {
      if (call_ != nullptr) {
        call_->OnWritten(ok);
      }
      return;
    }
    timer_.Disarm();
    if (const std::shared_ptr<HttpCall> call = std::exchange(call_, nullptr)) {
      if (!ok) {
        call->OnGone();
      }
      call->OnDone();
    }
    if (!socket_.is_open()) {
      Close();
    } else if (!keep_alive_) {
      Linger();
    } else if (input_.empty()) {
      input_ = {};  // with its memory
      BecomeIdle();
    } else {
      phase_ = Phase::kAhead;
      asio::post(sessions_.context, [self = shared_from_this()] { self->ReadAhead(); });
    }
  }

  // What came before the last answer had left.
  void ReadAhead() {
    if (phase_ == Phase::kAhead) {
      Parse();
      WaitWithin();
    }
  }

  void Linger() {
    phase_ = Phase::kLingering;
    ErrorOf ignored;
    socket_.shutdown(Protocol::socket::shutdown_send, ignored);
    input_ = {};
    Arm(LastBytes::kSilentMsMax);
    WaitReadable();
  }

  void CloseSocket() {
    context_.release(socket_.native_handle());  // -1 where it is closed: nobody's
    ErrorOf ignored;
    socket_.close(ignored);
  }

  void Close() {
    if (phase_ == Phase::kClosed) {
      return;
    }
    phase_ = Phase::kClosed;
    timer_.Disarm();
    place_.Give();
    CloseSocket();
    parser_.reset();
    Count(0);
    sessions_.all.erase(this);
    const std::lock_guard lock(context_.mutex);
    --context_.open;
    context_.left.notify_all();
  }

  void Count(std::int64_t bytes) {
    context_.memory_bytes.fetch_add(bytes - counted_bytes_, std::memory_order_relaxed);
    counted_bytes_ = bytes;
  }

  ConnectionContext& context_;
  Sessions& sessions_;
  Protocol::socket socket_;
  SessionTimer timer_;

  Phase phase_ = Phase::kIdle;
  bool waiting_ = false;  // for bytes
  LargeBodyPlace place_;
  bool keep_alive_ = true;
  bool chunked_ = true;
  bool head_only_ = false;  // the answer has no body, whatever it says
  // Whether the call is told that the client has left: once, and not while the end is written,
  // which says by itself whether it arrived.
  bool hears_gone_ = true;
  std::uint64_t request_number_ = 0;
  std::string input_;  // not parsed yet
  std::optional<RequestParser> parser_;
  std::shared_ptr<HttpCall> call_;  // of the request that is being answered
  std::string out_;                 // being written
  LastBytes last_bytes_;
  std::int64_t counted_bytes_ = 0;
};

void Session::Dispatch() {
  const bool keep_alive = parser_->keep_alive();
  const bool knows_chunks = parser_->knows_chunks();
  HttpRequest request = parser_->Take();
  // Its event may be far behind in the loop's queue: the engine would begin for nobody.
  request.client_left = HasLeft(socket_.native_handle());
  StartAnswer(keep_alive, knows_chunks, request.method == "HEAD");
  parser_.reset();
  Count(static_cast<std::int64_t>(request.body.size() + input_.size()));
  call_ = context_.handler(std::move(request), std::make_shared<SessionExchange<Session>>(
                                                   shared_from_this(), request_number_));
}

}  // namespace

struct ConnectionLoop::State {
  explicit State(ConnectionContext& shared) : context(shared) {}
  void OnEach(void (Session::*work)());

  ConnectionContext& context;
  Sessions sessions;
  asio::executor_work_guard<asio::io_context::executor_type> busy =
      asio::make_work_guard(sessions.context);
  std::thread thread;
  LoopProbe probe;
};

ConnectionLoop::ConnectionLoop(ConnectionContext& context)
    : state_(std::make_unique<State>(context)) {}

ConnectionLoop::~ConnectionLoop() {
  state_->sessions.context.stop();
  if (state_->thread.joinable()) {
    state_->thread.join();
  }
}

Status ConnectionLoop::Start() {
  try {
    state_->thread = std::thread([&context = state_->sessions.context] { context.run(); });
  } catch (const std::system_error& error) {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("HTTP's threads cannot be started: {}", error.what())};
  }
  return {};
}

void ConnectionLoop::Take(int descriptor) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &size);
  Protocol::socket socket(state_->sessions.context);
  ErrorOf error;
  socket.assign(Protocol(address.ss_family, 0), descriptor, error);
  if (error) {
    state_->context.release(descriptor);
    Descriptor(descriptor).Close();
    return;
  }
  socket.non_blocking(true, error);
  {
    const std::lock_guard lock(state_->context.mutex);
    ++state_->context.open;
  }
  auto session = std::make_shared<Session>(state_->context, state_->sessions, std::move(socket));
  asio::post(state_->sessions.context, [session] { session->Open(); });
}

LoopAnswers ConnectionLoop::Ask() {
  return state_->probe.Ask([&](auto answer) { asio::post(state_->sessions.context, answer); });
}

void ConnectionLoop::CloseIdle() {
  state_->OnEach(&Session::CloseIfIdle);
}

void ConnectionLoop::CloseAll() {
  state_->OnEach(&Session::Abandon);
}

void ConnectionLoop::State::OnEach(void (Session::*work)()) {
  asio::post(sessions.context, [this, work] {
    const std::set<Session*> all = sessions.all;  // which the work changes
    for (Session* session : all) {
      (session->shared_from_this().get()->*work)();
    }
  });
}

}  // namespace dsa
