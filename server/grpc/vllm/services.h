// The service of vllm.grpc.engine over one ServiceContext.
#pragma once

#include "server/api/service_context.h"
#include "server/grpc/named_service.h"

namespace dsa {

// `context` outlives it.
NamedService MakeVllmService(ServiceContext& context);

}  // namespace dsa
