// Hands each connection over as it is, and watches its end.
//
// It has ended as soon as the client has closed its side (EPOLLRDHUP), the connection broke
// (EPOLLERR), or whoever took it is about to close it and says so.  Without that an end could go
// unseen: closing a descriptor takes it out of every epoll, with the events that nobody has read
// yet.
#pragma once

#include "server/net/connection_keeper.h"

#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_set>

namespace dsa {

// Of the process, for each connection.
inline constexpr std::int64_t kDescriptorsPerWatched = 1;

class ConnectionWatch final : public ConnectionKeeper {
 public:
  explicit ConnectionWatch(TakeConnection take);

  int descriptor() const override { return watched_.number(); }
  int TimeoutMs() const override { return -1; }
  bool Add(int listener, Descriptor client) override;
  void Run() override;
  void Release(int connection) override;
  void StopHandingOver() override {}
  bool finished() const override { return true; }
  std::int64_t open() const override { return open_.load(std::memory_order_relaxed); }
  std::int64_t refused() const override { return 0; }

 private:
  const TakeConnection take_;
  const Descriptor watched_;  // an epoll of those that are open
  std::mutex mutex_;
  std::unordered_set<int> open_connections_;  // guarded by mutex_
  std::atomic<std::int64_t> open_{0};         // their number
};

}  // namespace dsa
