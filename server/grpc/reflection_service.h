// grpc.reflection.v1.  Ours, since Debian's library has v1alpha alone.  Reflection calls are not
// logged.
#pragma once

#include "server/grpc/named_service.h"

#include <string>
#include <vector>

namespace dsa {

// `services`: the full names of the others that are registered; its own comes to them.
NamedService MakeReflectionService(std::vector<std::string> services);

}  // namespace dsa
