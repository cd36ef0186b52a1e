// The listening server: our services, grpc.health.v1 and reflection on one address.  Connections
// come through our own acceptor (acceptor.h).
#pragma once

#include "common/status.h"
#include "server/api/service_context.h"
#include "server/net/acceptor.h"

#include <cstdint>
#include <memory>
#include <string>

namespace dsa {

struct GrpcServerConfig {
  std::string host = "127.0.0.1";  // as in listen_sockets.h
  std::int64_t port = 50051;       // 0: one that is free
  std::int64_t connections_max = 1024;
  std::int64_t handshake_ms_max = 10'000;  // from the connection to the client's first settings
  std::int64_t message_bytes_max = std::int64_t{16} << 20;
  GuardLimits guard;                // of a connection
  std::int64_t streams_max = 1280;  // of all connections
  // Clients may ping this often, with and without calls; we promise every 5 s, and leave room for
  // jitter.
  std::int64_t ping_interval_ms_min = 4'000;
  std::int64_t memory_bytes_max = std::int64_t{512} << 20;  // gRPC's own buffers
};

class GrpcServer final {
 public:
  // Listens; health says SERVING.  INVALID_ARGUMENT for an address that cannot be bound,
  // FAILED_PRECONDITION where descriptors or threads are missing.  `context` outlives the server.
  static Result<std::unique_ptr<GrpcServer>> Start(const GrpcServerConfig& config,
                                                   ServiceContext& context);
  ~GrpcServer();  // stops at once
  GrpcServer(const GrpcServer&) = delete;
  GrpcServer& operator=(const GrpcServer&) = delete;

  std::int64_t port() const;  // 0 for a unix socket
  const Acceptor& acceptor() const;

  // Health says NOT_SERVING, no connection is taken any more, and new requests are refused with
  // UNAVAILABLE; running ones go on.
  void BeginDrain();

  // Any thread.  Health says NOT_SERVING meanwhile; requests are taken all the same.
  void SetStalled(bool stalled);

  // Ends watches of health, stops listening, waits up to `limit_us` for open calls, then cancels
  // them.  The engine must still run, or have ended every request.
  void Stop(std::int64_t limit_us);

 private:
  struct State;
  explicit GrpcServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace dsa
