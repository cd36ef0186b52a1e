#include "server/net/connection_watch.h"

#include <array>
#include <utility>

#include <sys/epoll.h>

namespace dsa {

ConnectionWatch::ConnectionWatch(TakeConnection take)
    : take_(std::move(take)), watched_(epoll_create1(EPOLL_CLOEXEC)) {}

bool ConnectionWatch::Add(int listener, Descriptor client) {
  const int connection = client.number();
  epoll_event event{};
  event.events = EPOLLRDHUP;  // the others come unasked
  event.data.fd = connection;
  if (epoll_ctl(watched_.number(), EPOLL_CTL_ADD, connection, &event) != 0) {
    return false;
  }
  {
    const std::lock_guard lock(mutex_);
    open_connections_.insert(connection);
  }
  open_.fetch_add(1, std::memory_order_relaxed);
  take_(listener, client.Release());
  return true;
}

// An event may be older than a release; its number is nobody else's yet, since only this thread
// adds.
void ConnectionWatch::Run() {
  constexpr int kAtOnce = 64;
  std::array<epoll_event, kAtOnce> events{};
  int count = 0;
  do {
    count = epoll_wait(watched_.number(), events.data(), kAtOnce, 0);
    for (int i = 0; i < count; ++i) {
      Release(events[static_cast<std::size_t>(i)].data.fd);
    }
  } while (count == kAtOnce);
}

void ConnectionWatch::Release(int connection) {
  const std::lock_guard lock(mutex_);
  if (open_connections_.erase(connection) == 1) {
    epoll_ctl(watched_.number(), EPOLL_CTL_DEL, connection, nullptr);
    open_.fetch_sub(1, std::memory_order_relaxed);
  }
}

}  // namespace dsa
