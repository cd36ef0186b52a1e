// Takes connections from the listening sockets, on a thread of its own, and hands them to gRPC:
// never more than a number at once.  One too many is closed at once, so that a client hears of it,
// and the others work on.  gRPC's own listener would stop for ever once no descriptor is left.
//
// gRPC does not say when a connection ends, so each is watched through a duplicate of its
// descriptor.  It has ended as soon as the client has closed its side (EPOLLRDHUP), the connection
// broke (EPOLLERR), or gRPC has shut it down (EPOLLHUP), which it does before it closes any.  A
// duplicate costs a second descriptor a connection.  Without it an end could go unseen: closing a
// descriptor takes it out of every epoll, with the events that nobody has read yet.
#pragma once

#include "common/status.h"
#include "server/net/listen_sockets.h"

#include <cstdint>
#include <functional>
#include <memory>

namespace dsa {

// Of the process, for each connection.
inline constexpr std::int64_t kDescriptorsPerConnection = 2;

struct AcceptorProgress {
  std::int64_t rounds;  // that the thread has made
  bool working;         // it is within one
};

class Acceptor final {
 public:
  struct Options {
    std::int64_t connections_max;  // > 0
    // Takes over `connection`, accepted from `listener`.  Called by the acceptor's thread.
    std::function<void(int listener, int connection)> take;
  };

  // Listens from now on.  FAILED_PRECONDITION where descriptors or threads are missing.
  static Result<std::unique_ptr<Acceptor>> Start(ListenSockets listening, Options options);
  ~Acceptor();  // closes
  Acceptor(const Acceptor&) = delete;
  Acceptor& operator=(const Acceptor&) = delete;

  // Stops listening, removes a unix socket's path, joins the thread.  What was handed over lives
  // on.  Any thread but its own; more than once is fine.
  void Close();

  // Any thread.
  std::int64_t open() const;     // connections that have not ended
  std::int64_t refused() const;  // closed at once, so far
  AcceptorProgress progress() const;

 private:
  struct State;
  explicit Acceptor(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dsa
