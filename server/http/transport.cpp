#include "server/http/transport.h"

#include "server/http/connection_loop.h"
#include "server/net/listen_sockets.h"
#include "server/net/rare_line.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <limits>
#include <utility>

namespace dsa {
namespace {

constexpr std::size_t kThreads = 2;

}  // namespace

struct Transport::State {
  std::string AnswerFault(const FaultBody& body, const HttpFault& fault);

  ConnectionContext context;
  std::array<ConnectionLoop, kThreads> loops{ConnectionLoop(context), ConnectionLoop(context)};
  std::size_t next_loop = 0;  // the acceptor's thread
  std::int64_t port = 0;
  std::unique_ptr<Acceptor> acceptor;
  std::atomic<bool> has_acceptor{false};  // whose thread runs before it is there
  bool stopped = false;

  std::mutex refusal_mutex;
  RareLine refusal{"HTTP request refused"};  // guarded by refusal_mutex
};

// What reached no handler, which would have a line of its own.
std::string Transport::State::AnswerFault(const FaultBody& body, const HttpFault& fault) {
  {
    const std::lock_guard lock(refusal_mutex);
    refusal.Log(fault.message, "status", fault.status);
  }
  return body(fault);
}

Result<std::unique_ptr<Transport>> Transport::Start(const TransportConfig& config,
                                                    HttpHandler handler, FaultBody fault_body) {
  auto state = std::make_unique<State>();
  state->context.config = config;
  state->context.handler = std::move(handler);
  state->context.fault_body = [&answering = *state,
                               body = std::move(fault_body)](const HttpFault& fault) {
    return answering.AnswerFault(body, fault);
  };
  state->context.release = [&releasing = *state](int connection) {
    releasing.acceptor->Release(connection);
  };
  DSA_ASSIGN_OR_RETURN(ListenSockets listening, OpenListenSockets(config.host, config.port));
  state->port = listening.port;
  for (ConnectionLoop& loop : state->loops) {
    DSA_RETURN_IF_ERROR(loop.Start());
  }
  DSA_ASSIGN_OR_RETURN(
      state->acceptor,
      Acceptor::Start(std::move(listening),
                      {.connections_max = config.connections_max,
                       .take = [&taking = *state](int /*listener*/, int connection) {
                         taking.has_acceptor.wait(false, std::memory_order_acquire);
                         taking.loops[taking.next_loop++ % kThreads].Take(connection);
                       }}));
  state->has_acceptor.store(true, std::memory_order_release);
  state->has_acceptor.notify_all();
  return std::unique_ptr<Transport>(new Transport(std::move(state)));
}

Transport::Transport(std::unique_ptr<State> state) : state_(std::move(state)) {}

Transport::~Transport() {
  Stop(0);
}

std::int64_t Transport::port() const {
  return state_->port;
}

const Acceptor& Transport::acceptor() const {
  return *state_->acceptor;
}

std::int64_t Transport::connections() const {
  const std::lock_guard lock(state_->context.mutex);
  return state_->context.open;
}

LoopAnswers Transport::AskLoops() {
  LoopAnswers all = {.count = std::numeric_limits<std::int64_t>::max(), .pending = false};
  for (ConnectionLoop& loop : state_->loops) {
    const LoopAnswers one = loop.Ask();
    all.count = std::min(all.count, one.count);
    all.pending = all.pending || one.pending;
  }
  return all;
}

void Transport::BeginDrain() {
  state_->context.draining.store(true, std::memory_order_relaxed);
  state_->acceptor->Close();
}

void Transport::Stop(std::int64_t limit_us) {
  if (std::exchange(state_->stopped, true)) {
    return;
  }
  BeginDrain();
  for (ConnectionLoop& loop : state_->loops) {
    loop.CloseIdle();
  }
  ConnectionContext& context = state_->context;
  std::unique_lock lock(context.mutex);
  const auto none = [&] { return context.open == 0; };
  if (context.left.wait_for(lock, std::chrono::microseconds(limit_us), none)) {
    return;
  }
  lock.unlock();
  for (ConnectionLoop& loop : state_->loops) {
    loop.CloseAll();
  }
  lock.lock();
  context.left.wait(lock, none);
}

}  // namespace dsa
