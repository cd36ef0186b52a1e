// What the watchdog sees of each part of the server, and who is told.
#pragma once

#include "common/log.h"
#include "server/engine/engine_loop.h"
#include "server/grpc/grpc_server.h"
#include "server/http/http_server.h"
#include "server/net/acceptor.h"
#include "server/watchdog.h"

#include <memory>

namespace dsa {

inline Activity ActivityOf(const LoopActivity& loop) {
  return {.done = loop.done, .waiting = loop.waiting, .estimate_us = loop.estimate_us};
}

// An acceptor has work while it is within a round.
inline Activity ActivityOf(const AcceptorProgress& progress) {
  return {.done = progress.rounds, .waiting = progress.working, .estimate_us = 0};
}

// HTTP's threads have work while one has yet to say that it gets on.
inline Activity ActivityOf(const HttpAnswers& answers) {
  return {.done = answers.count, .waiting = answers.pending, .estimate_us = 0};
}

inline Activity ActivityOf(const LogProgress& log) {
  return {.done = log.lines_done, .waiting = log.waiting, .estimate_us = 0};
}

// All of them outlive the watchdog.
struct WatchedServer {
  EngineLoop& engine;
  GrpcServer& grpc;
  HttpServer* http;  // null where it is not served
};

// Watches every part; a stall turns the health of both servers.  `options.on_change` is set here.
Result<std::unique_ptr<Watchdog>> WatchServer(const WatchedServer& server,
                                              Watchdog::Options options);

}  // namespace dsa
