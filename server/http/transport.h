// HTTP/1.1 over connections that our acceptor takes: bytes to requests, answers to bytes, on a few
// threads that never wait.  Knows no route.
//
//   acceptor --> Session --HttpRequest--> handler --> HttpCall
//                   ^                                    |
//                   +--- HttpExchange: Respond, Send, End +     any thread
//
// A connection has one request at a time; what a client sends ahead waits, up to a limit.  Every
// request ends in one HttpCall::OnDone, also where the client has left.
#pragma once

#include "common/status.h"
#include "server/http/request_parser.h"
#include "server/net/acceptor.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsa {

struct HttpHeader {
  std::string_view name;
  std::string value;  // printable ASCII
};

struct HttpResponse {
  int status = 200;
  std::string_view content_type = "application/json";
  std::vector<HttpHeader> headers{};
  std::string body{};
};

// The way to answer one request.  Any thread; nothing waits and nothing calls back at once.
class HttpExchange {
 public:
  HttpExchange() = default;
  HttpExchange(const HttpExchange&) = delete;
  HttpExchange& operator=(const HttpExchange&) = delete;
  virtual ~HttpExchange() = default;

  // Either the whole answer, once,
  virtual void Respond(HttpResponse response) = 0;
  // or a stream: its head, with the first bytes of its body; more, each after HttpCall::OnWritten;
  // and the last.
  virtual void Begin(HttpResponse head) = 0;
  virtual void Send(std::string bytes) = 0;
  virtual void End(std::string bytes) = 0;

  // The request's body is held no more; until then it counts as being read.
  virtual void ReleaseBody() = 0;

  // Closes the connection, unanswered or not.  One of the above is still to come where none did.
  virtual void Drop() = 0;
};

// What a handler makes of a request that it answers later.  Called by the transport's threads.
class HttpCall {
 public:
  HttpCall() = default;
  HttpCall(const HttpCall&) = delete;
  HttpCall& operator=(const HttpCall&) = delete;
  virtual ~HttpCall() = default;

  virtual void OnWritten(bool ok) = 0;  // what Begin or Send gave
  virtual void OnGone() = 0;            // the client has left; the answer is still to be given
  virtual void OnDone() = 0;            // the answer has left, or cannot
};

// Called by a transport's thread, which must not be held up.  Null where the answer was given.
using HttpHandler = std::function<std::shared_ptr<HttpCall>(
    HttpRequest&& request, std::shared_ptr<HttpExchange> exchange)>;

struct TransportConfig {
  std::string host = "127.0.0.1";  // as in listen_sockets.h
  std::int64_t port = 0;           // 0: one that is free
  std::int64_t connections_max = 1024;
  std::int64_t header_bytes_max = std::int64_t{16} << 10;
  std::int64_t body_bytes_max = std::int64_t{16} << 20;
  std::int64_t memory_bytes_max = std::int64_t{512} << 20;  // of all requests that are being read,
                                                            // and of answers that are not yet
  std::int64_t header_ms_max = 10'000;                      // from a request's first byte
  std::int64_t body_ms_max = 60'000;                        // from its header
  std::int64_t write_ms_max = 30'000;                       // of a whole answer
  std::int64_t idle_ms_max = 75'000;                        // between requests
  std::string header_lines{};  // of every answer, each with its line end
};

// What answers to requests that never reach a handler look like.
using FaultBody = std::function<std::string(const HttpFault& fault)>;

// Of a thread that is asked whether it gets on (loop_probe.h).
struct LoopAnswers {
  std::int64_t count;
  bool pending;
};

class Transport final {
 public:
  // Listens.  INVALID_ARGUMENT for an address that cannot be bound, FAILED_PRECONDITION where
  // descriptors or threads are missing.
  static Result<std::unique_ptr<Transport>> Start(const TransportConfig& config,
                                                  HttpHandler handler, FaultBody fault_body);
  ~Transport();  // stops at once
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  std::int64_t port() const;  // 0 for a unix socket
  const Acceptor& acceptor() const;
  std::int64_t connections() const;

  // Whether all its threads get on: how often each has answered at least, and whether one has yet
  // to. One thread at a time.
  LoopAnswers AskLoops();

  // Takes no connection any more, and closes each behind its next answer.
  void BeginDrain();

  // Waits up to `limit_us` for open requests, then closes their connections.  Whoever answers must
  // still do so.
  void Stop(std::int64_t limit_us);

 private:
  struct State;
  explicit Transport(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dsa
