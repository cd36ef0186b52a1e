// How long a server has been there.
#pragma once

#include "server/api/service_context.h"

#include <cstdint>

namespace dsa {

inline std::int64_t UptimeUs(const ServiceContext& context) {
  return context.clock.NowUs() - context.server.ready_us;
}

}  // namespace dsa
