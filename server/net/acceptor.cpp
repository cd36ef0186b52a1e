#include "server/net/acceptor.h"

#include "common/clock.h"
#include "server/net/connection_watch.h"
#include "server/net/rare_line.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

namespace dsa {
namespace {

Descriptor OpenSpare() {
  return Descriptor(open("/dev/null", O_RDONLY | O_CLOEXEC));
}

// Errors of a connection that was gone before it was accepted, and of signals.
bool IsClientsError(int error) {
  switch (error) {
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM: return false;
    default: return true;
  }
}

std::unique_ptr<ConnectionKeeper> MakeKeeper(Acceptor::Options options) {
  if (options.relay) {
    return std::make_unique<ClientRelay>(*options.relay, std::move(options.take));
  }
  return std::make_unique<ConnectionWatch>(std::move(options.take));
}

}  // namespace

struct Acceptor::State {
  State(ListenSockets sockets, Options given)
      : listening(std::move(sockets)),
        connections_max(given.connections_max),
        wakeup(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        keeper(MakeKeeper(std::move(given))),
        spare(OpenSpare()) {}

  void Run();
  void RunOnce();
  void StopListening();
  void TakeFrom(int listener);
  bool TakeOne(int listener);
  void Refuse(std::string_view reason);
  bool RefuseWithSpare(int listener, int error);

  ListenSockets listening;  // the thread's, once it runs
  const std::int64_t connections_max;
  const Descriptor wakeup;

  // The acceptor's thread, but for the keeper's counts.
  static constexpr std::size_t kFixed = 2;  // of `waited`: the wakeup and the keeper
  std::vector<pollfd> waited;
  const std::unique_ptr<ConnectionKeeper> keeper;
  Descriptor spare;  // given up for a moment where no other is left
  bool exhausted = false;
  RareLine refusal{"connection refused"};

  // Written by the acceptor's thread; counts, which order nothing.
  std::atomic<std::int64_t> refused{0};
  std::atomic<std::int64_t> rounds{0};
  std::atomic<bool> working{false};

  // Set before the wakeup that makes them seen.
  std::atomic<bool> closing{false};
  std::atomic<bool> stopping{false};
  std::atomic<bool> closed{false};  // by the thread, which then notifies
  std::mutex stop;
  std::thread thread;  // joined under `stop`
};

void Acceptor::State::Run() {
  waited.push_back({.fd = wakeup.number(), .events = POLLIN, .revents = 0});
  waited.push_back({.fd = keeper->descriptor(), .events = POLLIN, .revents = 0});
  for (const Descriptor& listener : listening.sockets) {
    waited.push_back({.fd = listener.number(), .events = POLLIN, .revents = 0});
  }
  while (!stopping.load(std::memory_order_acquire)) {
    RunOnce();
  }
  // gRPC has ended its connections; their last bytes are on their way to clients that may be slow.
  constexpr MonotonicUs kLastBytesUs = 1'000'000;
  const SteadyClock clock;
  const MonotonicUs limit_us = clock.NowUs() + kLastBytesUs;
  for (keeper->Run(); !keeper->finished() && clock.NowUs() < limit_us; keeper->Run()) {
    constexpr int kLookAgainMs = 10;
    pollfd ready = {.fd = keeper->descriptor(), .events = POLLIN, .revents = 0};
    poll(&ready, 1, kLookAgainMs);
  }
}

void Acceptor::State::RunOnce() {
  constexpr int kPauseMs = 100;  // until the system may have room again
  const int keeper_ms = keeper->TimeoutMs();
  const int pause_ms = keeper_ms < 0 ? kPauseMs : std::min(kPauseMs, keeper_ms);
  poll(waited.data(), exhausted ? kFixed : waited.size(), exhausted ? pause_ms : keeper_ms);
  working.store(true, std::memory_order_relaxed);
  keeper->Run();
  const bool again = std::exchange(exhausted, false);
  for (std::size_t i = kFixed; i < waited.size(); ++i) {
    if (again || (waited[i].revents & POLLIN) != 0) {
      TakeFrom(waited[i].fd);
    }
  }
  if (waited[0].revents != 0) {
    eventfd_t value = 0;
    eventfd_read(wakeup.number(), &value);
  }
  if (closing.load(std::memory_order_acquire) && !closed.load(std::memory_order_relaxed)) {
    StopListening();
  }
  rounds.fetch_add(1, std::memory_order_relaxed);
  working.store(false, std::memory_order_relaxed);
}

void Acceptor::State::StopListening() {
  waited.resize(kFixed);
  listening.sockets.clear();
  if (!listening.path.empty()) {
    unlink(listening.path.c_str());
  }
  keeper->StopHandingOver();
  closed.store(true, std::memory_order_release);
  closed.notify_all();
}

void Acceptor::State::TakeFrom(int listener) {
  constexpr int kAtOnce = 64;  // then it is the other sockets' turn
  for (int i = 0; i < kAtOnce; ++i) {
    if (!TakeOne(listener)) {
      return;
    }
  }
}

// False where nobody waits, or none can be taken now.
bool Acceptor::State::TakeOne(int listener) {
  Descriptor connection(accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!connection.ok()) {
    const int error = errno;
    if (!IsClientsError(error)) {
      return RefuseWithSpare(listener, error);
    }
    return error != EAGAIN;
  }
  if (keeper->open() >= connections_max) {
    keeper->Run();  // some may have ended
  }
  if (keeper->open() >= connections_max) {
    Refuse("max_connections are open");
    return true;
  }
  const int on = 1;
  setsockopt(connection.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // no unix socket's
  if (!keeper->Add(listener, std::move(connection))) {
    Refuse(std::strerror(errno));
  }
  return true;
}

void Acceptor::State::Refuse(std::string_view reason) {
  refused.fetch_add(1, std::memory_order_relaxed);
  refusal.Log(reason, "max_connections", connections_max);
}

// Who waits is told by a close, which needs a descriptor for a moment; left alone, the socket would
// stay readable and this thread would spin.  False where nobody could be told.
bool Acceptor::State::RefuseWithSpare(int listener, int error) {
  spare.Close();
  Descriptor connection(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  const bool accepted = connection.ok();
  exhausted = !accepted && !IsClientsError(errno);
  connection.Close();
  spare = OpenSpare();
  if (accepted) {
    Refuse(std::strerror(error));
  } else if (exhausted) {
    refusal.Log(std::strerror(error), "max_connections", connections_max);
  }
  return accepted;
}

Result<std::unique_ptr<Acceptor>> Acceptor::Start(ListenSockets listening, Options options) {
  auto state = std::make_unique<State>(std::move(listening), std::move(options));
  if (!state->wakeup.ok() || state->keeper->descriptor() < 0 || !state->spare.ok()) {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("the acceptor has no descriptors: {}", std::strerror(errno))};
  }
  try {
    state->thread = std::thread([&running = *state] { running.Run(); });
  } catch (const std::system_error& error) {
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("the acceptor's thread cannot be started: {}", error.what())};
  }
  return std::unique_ptr<Acceptor>(new Acceptor(std::move(state)));
}

Acceptor::Acceptor(std::unique_ptr<State> state) : state_(std::move(state)) {}

Acceptor::~Acceptor() {
  Stop();
}

void Acceptor::Close() {
  State& state = *state_;
  state.closing.store(true, std::memory_order_release);
  eventfd_write(state.wakeup.number(), 1);
  state.closed.wait(false, std::memory_order_acquire);
}

void Acceptor::Stop() {
  State& state = *state_;
  const std::lock_guard lock(state.stop);
  if (!state.thread.joinable()) {
    return;
  }
  Close();
  state.stopping.store(true, std::memory_order_release);
  eventfd_write(state.wakeup.number(), 1);
  state.thread.join();
}

void Acceptor::Release(int connection) {
  state_->keeper->Release(connection);
}

std::int64_t Acceptor::open() const {
  return state_->keeper->open();
}

std::int64_t Acceptor::refused() const {
  return state_->refused.load(std::memory_order_relaxed);
}

std::int64_t Acceptor::told_off() const {
  return state_->keeper->refused();
}

AcceptorProgress Acceptor::progress() const {
  return {.rounds = state_->rounds.load(std::memory_order_relaxed),
          .working = state_->working.load(std::memory_order_relaxed)};
}

}  // namespace dsa
