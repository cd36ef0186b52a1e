// Takes connections from the listening sockets, on a thread of its own, and hands them on: never
// more than a number at once.  One too many is closed at once, so that a client hears of it, and
// the others work on.  gRPC's own listener would stop for ever once no descriptor is left.
#pragma once

#include "common/status.h"
#include "server/net/connection_keeper.h"
#include "server/net/listen_sockets.h"
#include "server/net/relay.h"

#include <cstdint>
#include <memory>
#include <optional>

namespace dsa {

struct AcceptorProgress {
  std::int64_t rounds;  // that the thread has made
  bool working;         // it is within one
};

class Acceptor final {
 public:
  struct Options {
    std::int64_t connections_max;  // > 0
    TakeConnection take;           // called by the acceptor's thread
    // Where given, what is taken is the server's end of a relay (relay.h); otherwise it is the
    // client's connection itself (connection_watch.h), of which Release must hear.
    std::optional<RelayOptions> relay = {};
  };

  // Listens from now on.  FAILED_PRECONDITION where descriptors or threads are missing.
  static Result<std::unique_ptr<Acceptor>> Start(ListenSockets listening, Options options);
  ~Acceptor();  // stops
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  // Stops listening and removes a unix socket's path; gRPC gets no connection any more.  What it
  // has got lives on.  Any thread but its own; more than once is fine.
  void Close();

  // Closes, waits up to a second for what gRPC has said last to be on its way, and ends what is
  // left. As Close; once gRPC has ended its connections.
  void Stop();

  // Before a connection that was taken is closed, where there is no relay.  Any thread.
  void Release(int connection);

  // Any thread.
  std::int64_t open() const;      // connections that have not ended
  std::int64_t refused() const;   // closed at once, so far
  std::int64_t told_off() const;  // ended for what they did
  AcceptorProgress progress() const;

 private:
  struct State;
  explicit Acceptor(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dsa
