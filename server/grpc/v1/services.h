// The services of dsa.v1 over one ServiceContext.
#pragma once

#include "server/api/service_context.h"
#include "server/grpc/named_service.h"

namespace dsa {

// `context` outlives them.
NamedService MakeChatService(ServiceContext& context);
NamedService MakeCompletionService(ServiceContext& context);
NamedService MakeTokenService(ServiceContext& context);
NamedService MakeModelService(ServiceContext& context);
NamedService MakeAdminService(ServiceContext& context);

}  // namespace dsa
