#include "server/cli/client.h"

#include "server/cli/terminal_text.h"
#include "server/grpc/call_info.h"
#include "server/grpc/grpc_library.h"

#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

namespace dsa {

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  PrepareGrpcLibrary();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);  // an address is where the server is
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

int FailWith(const grpc::Status& status) {
  fmt::print(stderr, "error: {}: {}\n", CodeName(status.error_code()),
             WithoutControls(status.error_message()));
  switch (status.error_code()) {
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::NOT_FOUND:
    case grpc::StatusCode::ALREADY_EXISTS:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::UNIMPLEMENTED: return 2;
    default: return 1;
  }
}

}  // namespace dsa
