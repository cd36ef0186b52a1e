#include "server/net/connection_watch.h"

#include <array>
#include <utility>

#include <fcntl.h>
#include <sys/epoll.h>

namespace dsa {

ConnectionWatch::ConnectionWatch(TakeConnection take)
    : take_(std::move(take)), watched_(epoll_create1(EPOLL_CLOEXEC)) {}

bool ConnectionWatch::Add(int listener, Descriptor client) {
  Descriptor duplicate(fcntl(client.number(), F_DUPFD_CLOEXEC, 0));
  epoll_event event{};
  event.events = EPOLLRDHUP;  // the others come unasked
  event.data.fd = duplicate.number();
  if (!duplicate.ok() ||
      epoll_ctl(watched_.number(), EPOLL_CTL_ADD, duplicate.number(), &event) != 0) {
    return false;
  }
  duplicate.Release();
  open_.fetch_add(1, std::memory_order_relaxed);
  take_(listener, client.Release());
  return true;
}

void ConnectionWatch::Run() {
  constexpr int kAtOnce = 64;
  std::array<epoll_event, kAtOnce> events{};
  int count = 0;
  do {
    count = epoll_wait(watched_.number(), events.data(), kAtOnce, 0);
    for (int i = 0; i < count; ++i) {
      const Descriptor duplicate(events[static_cast<std::size_t>(i)].data.fd);
      // The connection may live on where it was handed to, and with it what the epoll watches.
      epoll_ctl(watched_.number(), EPOLL_CTL_DEL, duplicate.number(), nullptr);
      open_.fetch_sub(1, std::memory_order_relaxed);
    }
  } while (count == kAtOnce);
}

}  // namespace dsa
