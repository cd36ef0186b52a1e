// A service to be registered, and its name for health.
#pragma once

#include <memory>
#include <string>

#include <grpcpp/impl/codegen/service_type.h>

namespace dsa {

struct NamedService {
  std::string name;  // in full: "dsa.v1.ChatService"
  std::unique_ptr<grpc::Service> service;
};

}  // namespace dsa
