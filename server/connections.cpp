#include "server/connections.h"

#include "server/net/connection_watch.h"
#include "server/net/relay.h"

#include <algorithm>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::int64_t kConnectionsDefault = 1024;
// Standard streams, listening sockets, a shard that is read, what gRPC and the acceptor wait with;
// and connections that have ended but are not closed yet.
constexpr std::int64_t kOtherDescriptors = 64;

}  // namespace

Result<std::int64_t> ChooseConnectionsMax(std::int64_t configured, std::int64_t servers,
                                          std::int64_t descriptors) {
  const std::int64_t each = kDescriptorsPerRelayed + (servers - 1) * kDescriptorsPerWatched;
  const std::int64_t fitting = (descriptors - kOtherDescriptors) / each;
  const std::int64_t wanted = configured == 0 ? std::min(kConnectionsDefault, fitting) : configured;
  if (wanted < 1 || wanted > fitting) {
    const std::int64_t asked = std::max(configured, std::int64_t{1});
    return Error{ErrorCode::kFailedPrecondition,
                 fmt::format("max_connections: {} need {} descriptors, but the limit of open files "
                             "is {} (ulimit -Hn)",
                             asked, asked * each + kOtherDescriptors, descriptors)};
  }
  return wanted;
}

}  // namespace dsa
