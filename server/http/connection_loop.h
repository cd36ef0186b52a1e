// Connections of the HTTP transport, served by one thread.
#pragma once

#include "common/status.h"
#include "server/http/large_bodies.h"
#include "server/http/transport.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace dsa {

// What all loops share; outlives them.
struct ConnectionContext {
  TransportConfig config;
  HttpHandler handler;
  FaultBody fault_body;
  std::function<void(int connection)> release;  // before a connection is closed
  std::atomic<bool> draining{false};            // a hint: who reads it late answers once more
  std::atomic<std::int64_t> memory_bytes{0};    // of requests; a count that orders nothing
  LargeBodies large_bodies;

  std::mutex mutex;
  std::condition_variable left;  // a connection has
  std::int64_t open = 0;         // connections; guarded by mutex
};

class ConnectionLoop final {
 public:
  explicit ConnectionLoop(ConnectionContext& context);
  ~ConnectionLoop();  // once no connection is open
  ConnectionLoop(const ConnectionLoop&) = delete;
  ConnectionLoop& operator=(const ConnectionLoop&) = delete;

  // FAILED_PRECONDITION where no thread can be started.
  Status Start();

  // Whether the thread gets on: how often it has answered this, and whether it has yet to answer
  // the time before.  One thread at a time; waits for nothing.
  LoopAnswers Ask();

  // Any thread.
  void Take(int descriptor);
  void CloseIdle();
  void CloseAll();  // requests that are being answered end as those of clients that have left

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dsa
