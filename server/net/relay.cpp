#include "server/net/relay.h"

#include "server/net/relay_connection.h"

#include <algorithm>
#include <array>
#include <utility>

#include <sys/epoll.h>

namespace dsa {
namespace {

constexpr int kEventsAtOnce = 64;
constexpr int kRetryMs = 10;
constexpr MonotonicUs kRetryUs = 10'000;
constexpr int kDeadlinesMs = 100;
constexpr MonotonicUs kDeadlinesUs = 100'000;

}  // namespace

ClientRelay::ClientRelay(const RelayOptions& options, TakeConnection take)
    : options_(options),
      take_(std::move(take)),
      clock_(options.clock == nullptr ? own_clock_ : *options.clock),
      events_(epoll_create1(EPOLL_CLOEXEC)),
      budget_(options_.streams_max),
      chunk_(kChunkBytes, '\0') {}

ClientRelay::~ClientRelay() = default;

int ClientRelay::TimeoutMs() const {
  if (!waiting_.empty()) {
    return kRetryMs;
  }
  return deadlines_ ? kDeadlinesMs : -1;
}

bool ClientRelay::Add(int listener, Descriptor client) {
  now_us_ = clock_.NowUs();
  Connection& connection = connections_.emplace_back(options_, budget_, now_us_);
  connection.place = std::prev(connections_.end());
  connection.listener = listener;
  connection.client.of = &connection;
  connection.client.socket = std::move(client);
  open_.fetch_add(1, std::memory_order_relaxed);
  SetDeadline(connection, options_.handshake_ms_max * 1000);
  SetInterests(connection);
  return !connection.dead;
}

void ClientRelay::Run() {
  constexpr int kRoundsMax = 16;
  now_us_ = clock_.NowUs();
  for (int i = 0; i < kRoundsMax && RunEvents(); ++i) {
  }
  if (!waiting_.empty() && now_us_ - retried_us_ >= kRetryUs) {
    RetryWaiting();
  }
  if (deadlines_ && now_us_ - met_us_ >= kDeadlinesUs) {
    MeetDeadlines();
  }
  Bury();
}

// False where no more are ready.
bool ClientRelay::RunEvents() {
  std::array<epoll_event, kEventsAtOnce> ready{};
  const int count = epoll_wait(events_.number(), ready.data(), kEventsAtOnce, 0);
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = ready[static_cast<std::size_t>(i)];
    End& end = *static_cast<End*>(event.data.ptr);
    Connection& connection = *end.of;
    if (connection.dead) {
      continue;
    }
    if (&end == &connection.client) {
      OnClient(connection, event.events);
    } else {
      OnServer(connection, event.events);
    }
    Settle(connection);
  }
  Bury();
  now_us_ = clock_.NowUs();
  return count == kEventsAtOnce;
}

void ClientRelay::SetDeadline(Connection& connection, std::int64_t after_us) {
  connection.deadline_us = now_us_ + after_us;
  deadlines_ = true;
}

void ClientRelay::EndClient(Connection& connection) {
  if (std::exchange(connection.counted, false)) {
    open_.fetch_sub(1, std::memory_order_relaxed);
  }
}

void ClientRelay::Kill(Connection& connection) {
  if (std::exchange(connection.dead, true)) {
    return;
  }
  EndClient(connection);
  SetInterest(connection.client, 0);
  if (connection.handed_over()) {
    SetInterest(connection.server, 0);
  }
  dead_.push_back(&connection);
}

void ClientRelay::RetryWaiting() {
  retried_us_ = now_us_;
  const std::vector<Connection*> waited = std::exchange(waiting_, {});
  for (Connection* const one : waited) {
    one->listed = false;
    if (one->waiting && !one->dead) {
      Admit(*one);  // puts it behind the others where it still waits
      Settle(*one);
    }
  }
}

void ClientRelay::MeetDeadlines() {
  met_us_ = now_us_;
  deadlines_ = false;
  for (Connection& connection : connections_) {
    if (connection.dead || connection.deadline_us == 0) {
      continue;
    }
    if (now_us_ >= connection.deadline_us) {
      Meet(connection);
      Settle(connection);
    }
    deadlines_ = deadlines_ || connection.deadline_us != 0;
  }
}

void ClientRelay::Meet(Connection& connection) {
  connection.deadline_us = 0;
  const bool begins = connection.handed_over() && !connection.refusing &&
                      !connection.server_ended && !connection.server_told;
  if (!begins) {
    Kill(connection);
  } else if (options_.limits.enabled && !connection.guard.settings_acknowledged()) {
    Refuse(connection, "the server's settings are not acknowledged");
  }
}

void ClientRelay::StopHandingOver() {
  handing_over_ = false;
  for (Connection& connection : connections_) {
    if (!connection.handed_over()) {
      Kill(connection);
    }
  }
  Bury();
}

bool ClientRelay::finished() const {
  return std::all_of(connections_.begin(), connections_.end(),
                     [](const Connection& one) { return one.lingering; });
}

void ClientRelay::Bury() {
  for (Connection* const one : std::exchange(dead_, {})) {
    one->guard.End(now_us_);
    std::erase(waiting_, one);
    connections_.erase(one->place);
  }
}

}  // namespace dsa
