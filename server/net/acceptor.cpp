#include "server/net/acceptor.h"

#include "common/clock.h"
#include "common/log.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
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

}  // namespace

struct Acceptor::State {
  // A flood of clients is no flood of lines.
  class RareLine final {
   public:
    explicit RareLine(std::string_view message) : message_(message) {}

    void Log(std::string_view reason, std::int64_t connections_max) {
      constexpr MonotonicUs kEveryUs = 1'000'000;
      ++times_;
      const MonotonicUs now_us = clock_.NowUs();
      if (said_us_ == 0 || now_us - said_us_ >= kEveryUs) {
        dsa::Log(LogLevel::kWarning, message_,
                 {{"reason", reason}, {"times", times_}, {"max_connections", connections_max}});
        said_us_ = now_us;
        times_ = 0;
      }
    }

   private:
    const SteadyClock clock_;
    const std::string_view message_;
    MonotonicUs said_us_ = 0;
    std::int64_t times_ = 0;  // since then
  };

  State(ListenSockets sockets, Options given)
      : listening(std::move(sockets)),
        options(std::move(given)),
        wakeup(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        watched(epoll_create1(EPOLL_CLOEXEC)),
        spare(OpenSpare()) {}

  void Run();
  void TakeFrom(int listener);
  bool TakeOne(int listener);
  bool Watch(int connection);
  void SeeEnded();
  void Refuse(std::string_view reason);
  bool RefuseWithSpare(int listener, int error);

  // Constant after construction; the sockets until the thread has ended.
  ListenSockets listening;
  const Options options;
  const Descriptor wakeup;
  const Descriptor watched;  // an epoll of the duplicates

  // The acceptor's thread.
  Descriptor spare;  // given up for a moment where no other is left
  bool exhausted = false;
  RareLine refusal{"connection refused"};

  // Written by the acceptor's thread; counts, which order nothing.
  std::atomic<std::int64_t> open{0};
  std::atomic<std::int64_t> refused{0};
  std::atomic<std::int64_t> rounds{0};
  std::atomic<bool> working{false};

  std::atomic<bool> stopping{false};  // set before the wakeup that makes it seen
  std::mutex closing;
  std::thread thread;  // joined under `closing`
};

void Acceptor::State::Run() {
  constexpr int kPauseMs = 100;  // until the system may have room again
  std::vector<pollfd> waited = {{.fd = wakeup.number(), .events = POLLIN, .revents = 0},
                                {.fd = watched.number(), .events = POLLIN, .revents = 0}};
  const std::size_t fixed = waited.size();
  for (const Descriptor& listener : listening.sockets) {
    waited.push_back({.fd = listener.number(), .events = POLLIN, .revents = 0});
  }
  while (!stopping.load(std::memory_order_acquire)) {
    poll(waited.data(), exhausted ? fixed : waited.size(), exhausted ? kPauseMs : -1);
    working.store(true, std::memory_order_relaxed);
    SeeEnded();
    const bool again = std::exchange(exhausted, false);
    for (std::size_t i = fixed; i < waited.size(); ++i) {
      if (again || (waited[i].revents & POLLIN) != 0) {
        TakeFrom(waited[i].fd);
      }
    }
    rounds.fetch_add(1, std::memory_order_relaxed);
    working.store(false, std::memory_order_relaxed);
  }
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
  if (open.load(std::memory_order_relaxed) >= options.connections_max) {
    SeeEnded();
  }
  if (open.load(std::memory_order_relaxed) >= options.connections_max) {
    Refuse("max_connections are open");
    return true;
  }
  const int on = 1;
  setsockopt(connection.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // no unix socket's
  if (!Watch(connection.number())) {
    Refuse(std::strerror(errno));
    return true;
  }
  options.take(listener, connection.Release());
  return true;
}

bool Acceptor::State::Watch(int connection) {
  Descriptor duplicate(fcntl(connection, F_DUPFD_CLOEXEC, 0));
  epoll_event event{};
  event.events = EPOLLRDHUP;  // the others come unasked
  event.data.fd = duplicate.number();
  if (!duplicate.ok() ||
      epoll_ctl(watched.number(), EPOLL_CTL_ADD, duplicate.number(), &event) != 0) {
    return false;
  }
  duplicate.Release();
  open.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void Acceptor::State::SeeEnded() {
  constexpr int kAtOnce = 64;
  std::array<epoll_event, kAtOnce> events{};
  int count = 0;
  do {
    count = epoll_wait(watched.number(), events.data(), kAtOnce, 0);
    for (int i = 0; i < count; ++i) {
      const Descriptor duplicate(events[static_cast<std::size_t>(i)].data.fd);
      // The connection may live on in gRPC, and with it what the epoll watches.
      epoll_ctl(watched.number(), EPOLL_CTL_DEL, duplicate.number(), nullptr);
      open.fetch_sub(1, std::memory_order_relaxed);
    }
  } while (count == kAtOnce);
}

void Acceptor::State::Refuse(std::string_view reason) {
  refused.fetch_add(1, std::memory_order_relaxed);
  refusal.Log(reason, options.connections_max);
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
    refusal.Log(std::strerror(error), options.connections_max);
  }
  return accepted;
}

Result<std::unique_ptr<Acceptor>> Acceptor::Start(ListenSockets listening, Options options) {
  auto state = std::make_unique<State>(std::move(listening), std::move(options));
  if (!state->wakeup.ok() || !state->watched.ok() || !state->spare.ok()) {
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
  Close();
}

void Acceptor::Close() {
  State& state = *state_;
  const std::lock_guard lock(state.closing);
  if (!state.thread.joinable()) {
    return;
  }
  state.stopping.store(true, std::memory_order_release);
  eventfd_write(state.wakeup.number(), 1);
  state.thread.join();
  state.listening.sockets.clear();
  if (!state.listening.path.empty()) {
    unlink(state.listening.path.c_str());
  }
}

std::int64_t Acceptor::open() const {
  return state_->open.load(std::memory_order_relaxed);
}

std::int64_t Acceptor::refused() const {
  return state_->refused.load(std::memory_order_relaxed);
}

AcceptorProgress Acceptor::progress() const {
  return {.rounds = state_->rounds.load(std::memory_order_relaxed),
          .working = state_->working.load(std::memory_order_relaxed)};
}

}  // namespace dsa
