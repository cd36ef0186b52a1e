// The HTTP server: OpenAI's routes on one address.
#pragma once

#include "common/status.h"
#include "server/api/service_context.h"
#include "server/net/acceptor.h"

#include <cstdint>
#include <memory>
#include <string>

namespace dsa {

// Whether HTTP's threads get on: how often they have answered, and whether one has yet to.
struct HttpAnswers {
  std::int64_t count;
  bool pending;
};

struct HttpServerConfig {
  std::string host = "127.0.0.1";  // as in listen_sockets.h
  std::int64_t port = 8000;        // 0: one that is free
  std::int64_t connections_max = 1024;
  std::int64_t header_ms_max = 10'000;  // from a request's first byte
  std::int64_t body_ms_max = 60'000;    // from its header
  std::int64_t write_ms_max = 30'000;   // of a whole answer
  std::int64_t message_bytes_max = std::int64_t{16} << 20;
  std::int64_t memory_bytes_max = std::int64_t{512} << 20;  // of requests that are being read
  bool strict = false;  // fields that nobody documents are refused, not ignored
};

class HttpServer final {
 public:
  // Listens.  INVALID_ARGUMENT for an address that cannot be bound, FAILED_PRECONDITION where
  // descriptors or threads are missing, or the build has no HTTP.  `context` outlives the server.
  static Result<std::unique_ptr<HttpServer>> Start(const HttpServerConfig& config,
                                                   ServiceContext& context);
  ~HttpServer();  // stops at once
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  std::int64_t port() const;  // 0 for a unix socket
  const Acceptor& acceptor() const;
  std::int64_t connections() const;
  HttpAnswers AskThreads();  // the watchdog's thread

  // /ready says 503, no connection is taken any more, and new requests are refused, behind which
  // their connections are closed; running ones go on.
  void BeginDrain();

  // Any thread.  /ready says 503 meanwhile; requests are taken all the same.
  void SetStalled(bool stalled);

  // Waits up to `limit_us` for open requests, then cancels them.  The engine must still run, or
  // have ended every request.
  void Stop(std::int64_t limit_us);

 private:
  struct State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dsa
