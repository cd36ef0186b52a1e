#include "server/watched_parts.h"

#include <utility>
#include <vector>

namespace dsa {

Result<std::unique_ptr<Watchdog>> WatchServer(const WatchedServer& server,
                                              Watchdog::Options options) {
  // The pump before the engine, which stands still when the pump does.
  std::vector<WatchedPart> parts = {
      {.name = "pump",
       .read = [&engine = server.engine] { return ActivityOf(engine.PumpActivity()); },
       .vital = true},
      {.name = "engine",
       .read = [&engine = server.engine] { return ActivityOf(engine.EngineActivity()); },
       .vital = true},
      {.name = "acceptor",
       .read = [&grpc = server.grpc] { return ActivityOf(grpc.acceptor().progress()); },
       .vital = false},
      {.name = "log", .read = [] { return ActivityOf(ReadLogProgress()); }, .vital = false},
  };
  if (server.http != nullptr) {
    parts.push_back(
        {.name = "HTTP acceptor",
         .read = [&http = *server.http] { return ActivityOf(http.acceptor().progress()); },
         .vital = false});
    parts.push_back({.name = "HTTP",
                     .read = [&http = *server.http] { return ActivityOf(http.AskThreads()); },
                     .vital = false});
  }
  options.on_change = [&grpc = server.grpc, http = server.http](bool stalled) {
    grpc.SetStalled(stalled);
    if (http != nullptr) {
      http->SetStalled(stalled);
    }
  };
  return Watchdog::Start(std::move(parts), std::move(options));
}

}  // namespace dsa
