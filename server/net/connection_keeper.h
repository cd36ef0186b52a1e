// What becomes of accepted connections, and how many there are.  The acceptor's thread, but for the
// counts.
#pragma once

#include "common/descriptor.h"

#include <cstdint>
#include <functional>

namespace dsa {

// Takes over `connection`, whose client came to `listener`.
using TakeConnection = std::function<void(int listener, int connection)>;

class ConnectionKeeper {
 public:
  ConnectionKeeper() = default;
  ConnectionKeeper(const ConnectionKeeper&) = delete;
  ConnectionKeeper& operator=(const ConnectionKeeper&) = delete;
  virtual ~ConnectionKeeper() = default;

  // Readable when Run has something to do; -1 where there was no descriptor.
  virtual int descriptor() const = 0;
  // After how long it has something to do all the same; -1: never.
  virtual int TimeoutMs() const = 0;

  // False, and closed, where descriptors are missing.
  virtual bool Add(int listener, Descriptor client) = 0;
  // Does what can be done without waiting.
  virtual void Run() = 0;
  // None is handed over any more; those that wait for it are closed.
  virtual void StopHandingOver() = 0;
  // Nothing is left to say to a client.
  virtual bool finished() const = 0;

  // Any thread.  Whoever took a connection is about to close its descriptor.
  virtual void Release(int /*connection*/) {}
  virtual std::int64_t open() const = 0;     // that have not ended
  virtual std::int64_t refused() const = 0;  // ended for what they did
};

}  // namespace dsa
