// What the commands that talk to a server share.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <grpcpp/channel.h>
#include <grpcpp/support/status.h>

namespace dsa {

inline constexpr std::string_view kDefaultAddress = "127.0.0.1:50051";

// A channel without encryption and without any proxy; connects with the first call.
std::shared_ptr<grpc::Channel> Connect(const std::string& address);

// Says what went wrong on standard error.  2 where the request was at fault, otherwise 1.
int FailWith(const grpc::Status& status);

}  // namespace dsa
