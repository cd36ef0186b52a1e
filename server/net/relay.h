// Carries bytes between clients and gRPC, each connection under a guard (connection_guard.h), and
// knows when a connection ends.  gRPC gets one end of a pair of unix sockets once the client has
// opened HTTP/2; before that a connection costs gRPC nothing.
//
// Bytes are held only where the other side does not take them, at most a chunk in each direction;
// then nothing more is read from where they come.  A side that ends ends the other one behind the
// bytes on their way.  A client that is refused is told so by a GOAWAY between two of the server's
// frames.  The acceptor's thread, but for the counts.
#pragma once

#include "common/clock.h"
#include "common/descriptor.h"
#include "server/net/connection_guard.h"
#include "server/net/connection_keeper.h"
#include "server/net/rare_line.h"
#include "server/net/stream_budget.h"

#include <atomic>
#include <cstdint>
#include <list>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// Of the process, for each connection: the client's, and both ends of the pair.
inline constexpr std::int64_t kDescriptorsPerRelayed = 3;

// Read at once, and held at most in each direction of a connection.
inline constexpr std::size_t kChunkBytes = 16 << 10;

struct RelayOptions {
  const Clock* clock = nullptr;  // outlives the relay; null: the machine's
  GuardLimits limits = {};
  std::int64_t streams_max = 1280;         // of all connections
  std::int64_t handshake_ms_max = 10'000;  // until the server's settings are acknowledged
};

class ClientRelay final : public ConnectionKeeper {
 public:
  // `take` gets gRPC's end of a pair.
  ClientRelay(const RelayOptions& options, TakeConnection take);
  ~ClientRelay() override;

  int descriptor() const override { return events_.number(); }
  int TimeoutMs() const override;
  bool Add(int listener, Descriptor client) override;
  void Run() override;
  void StopHandingOver() override;
  bool finished() const override;
  std::int64_t open() const override { return open_.load(std::memory_order_relaxed); }
  std::int64_t refused() const override { return refused_.load(std::memory_order_relaxed); }

 private:
  struct Connection;
  struct End {
    Connection* of = nullptr;
    Descriptor socket;
    std::uint32_t interest = 0;  // what epoll watches; nothing: it is not there
  };

  bool RunEvents();
  void OnClient(Connection& connection, std::uint32_t events);
  void OnServer(Connection& connection, std::uint32_t events);
  void ReadClient(Connection& connection);
  void ReadServer(Connection& connection);
  void Admit(Connection& connection);
  bool HandOver(Connection& connection);
  void FlushToServer(Connection& connection);
  void SendToClient(Connection& connection, std::string_view bytes);
  void FlushToClient(Connection& connection);
  void Refuse(Connection& connection, std::string_view reason);
  void Settle(Connection& connection);
  void SetInterests(Connection& connection);
  void SetInterest(End& end, std::uint32_t interest);
  void SetDeadline(Connection& connection, std::int64_t after_us);
  void EndClient(Connection& connection);
  void Kill(Connection& connection);
  void RetryWaiting();
  void MeetDeadlines();
  void Meet(Connection& connection);
  void Bury();

  const RelayOptions options_;
  const TakeConnection take_;
  const SteadyClock own_clock_;
  const Clock& clock_;
  const Descriptor events_;  // an epoll
  StreamBudget budget_;
  std::list<Connection> connections_;
  std::vector<Connection*> waiting_;  // for streams to end
  std::vector<Connection*> dead_;
  std::string chunk_;
  MonotonicUs now_us_ = 0;  // of this Run
  MonotonicUs retried_us_ = 0;
  MonotonicUs met_us_ = 0;  // when deadlines were looked at
  bool deadlines_ = false;  // some are set
  bool handing_over_ = true;
  RareLine refusal_{"client refused"};

  std::atomic<std::int64_t> open_{0};
  std::atomic<std::int64_t> refused_{0};
};

}  // namespace dsa
