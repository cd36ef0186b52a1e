// The services of dsa.v1 over one ServiceContext.
#pragma once

#include "server/api/service_context.h"

#include <memory>
#include <vector>

#include <grpcpp/impl/codegen/service_type.h>

namespace dsa {

// `context` outlives them.
std::unique_ptr<grpc::Service> MakeChatService(ServiceContext& context);
std::unique_ptr<grpc::Service> MakeCompletionService(ServiceContext& context);
std::unique_ptr<grpc::Service> MakeTokenService(ServiceContext& context);
std::unique_ptr<grpc::Service> MakeModelService(ServiceContext& context);
std::unique_ptr<grpc::Service> MakeAdminService(ServiceContext& context);

}  // namespace dsa
