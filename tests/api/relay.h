// A TCP relay in front of a server, whose connections the test cuts as a vanished client would.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace dsa::testing {

class Relay final {
 public:
  explicit Relay(std::int64_t server_port);
  ~Relay();  // cuts
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  std::int64_t port() const { return port_; }
  // Closes every connection on both sides.
  void Cut();

 private:
  void Accept();
  void Forward(int from, int to) const;

  const std::int64_t server_port_;
  int listener_ = -1;
  std::int64_t port_ = 0;
  std::mutex mutex_;
  std::vector<int> sockets_;          // guarded by mutex_
  std::vector<std::thread> threads_;  // of the connections; accepting thread, then the destructor
  std::thread acceptor_;
};

}  // namespace dsa::testing
