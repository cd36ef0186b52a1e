#include "server/http/http_server.h"

#include "server/http/openai/errors.h"
#include "server/http/openai/routes.h"
#include "server/http/transport.h"

#include <utility>

#include <fmt/core.h>

namespace dsa {

struct HttpServer::State {
  State(ServiceContext& served, UnknownKeys unknown) : context(served), routes(served, unknown) {}

  ServiceContext& context;
  Routes routes;
  std::unique_ptr<Transport> transport;
};

Result<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerConfig& config,
                                                      ServiceContext& context) {
  auto state = std::make_unique<State>(
      context, config.strict ? UnknownKeys::kRefused : UnknownKeys::kIgnored);
  TransportConfig listening;
  listening.host = config.host;
  listening.port = config.port;
  listening.connections_max = config.connections_max;
  listening.header_ms_max = config.header_ms_max;
  listening.body_ms_max = config.body_ms_max;
  listening.write_ms_max = config.write_ms_max;
  listening.body_bytes_max = config.message_bytes_max;
  listening.memory_bytes_max = config.memory_bytes_max;
  listening.header_lines = fmt::format("{}: {}\r\n", kInstanceHeader, context.server.instance);
  DSA_ASSIGN_OR_RETURN(
      state->transport,
      Transport::Start(
          listening,
          [&routes = state->routes](HttpRequest&& request, std::shared_ptr<HttpExchange> exchange) {
            return routes.Handle(std::move(request), std::move(exchange));
          },
          FaultErrorBody));
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(state)));
}

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

HttpServer::~HttpServer() {
  Stop(0);
}

std::int64_t HttpServer::port() const {
  return state_->transport->port();
}

const Acceptor& HttpServer::acceptor() const {
  return state_->transport->acceptor();
}

std::int64_t HttpServer::connections() const {
  return state_->transport->connections();
}

HttpAnswers HttpServer::AskThreads() {
  const LoopAnswers answers = state_->transport->AskLoops();
  return {.count = answers.count, .pending = answers.pending};
}

void HttpServer::BeginDrain() {
  state_->context.draining.store(true, std::memory_order_relaxed);
  state_->transport->BeginDrain();
}

void HttpServer::SetStalled(bool stalled) {
  state_->routes.SetStalled(stalled);
}

void HttpServer::Stop(std::int64_t limit_us) {
  state_->transport->Stop(limit_us);
}

}  // namespace dsa
