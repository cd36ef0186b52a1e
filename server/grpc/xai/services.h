// The services of xai_api over one ServiceContext.
#pragma once

#include "server/api/service_context.h"
#include "server/grpc/named_service.h"

namespace dsa {

// `context` outlives them.
NamedService MakeXaiChatService(ServiceContext& context);
NamedService MakeXaiModelsService(ServiceContext& context);
NamedService MakeXaiTokenizeService(ServiceContext& context);
NamedService MakeXaiAuthService(ServiceContext& context);

}  // namespace dsa
