// grpc.health.v1.  Ours and not gRPC's own, under which an open Watch holds up a shutdown until its
// limit: here watches hear the last state and are ended.  Health calls are not logged.
//
// Names: "" for the whole server, "readiness", the full names of the services that are registered,
// and "liveness", which stays SERVING while the server drains or is stalled.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <grpcpp/impl/codegen/service_type.h>

namespace dsa {

class HealthService final {
 public:
  // `services`: full names, such as "dsa.v1.ChatService".  Everything is SERVING.
  explicit HealthService(std::vector<std::string> services);
  ~HealthService();
  HealthService(const HealthService&) = delete;
  HealthService& operator=(const HealthService&) = delete;

  // To be registered; lives as long as this object, which outlives the gRPC server.
  grpc::Service& service();

  // Thread-safe.  NOT_SERVING from now on, for every name but liveness; watches are told.
  void BeginDrain();
  // Thread-safe.  NOT_SERVING as in a drain while `stalled`; watches are told.
  void SetStalled(bool stalled);
  // Thread-safe.  Ends every watch with UNAVAILABLE once it has been told the state; new ones at
  // once.
  void EndWatches();

 private:
  class Board;
  class Watch;
  class Service;
  std::shared_ptr<Board> board_;  // shared with the reactors of open watches
  std::unique_ptr<Service> service_;
};

}  // namespace dsa
