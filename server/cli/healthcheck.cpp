#include "proto/health.grpc.pb.h"
#include "server/cli/address.h"
#include "server/cli/client.h"
#include "server/cli/commands.h"
#include "server/cli/report.h"

#include <chrono>
#include <optional>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

struct HealthOptions {
  std::string address{kDefaultAddress};
  std::optional<int> process;
  std::string service;
  double timeout_s = 3.0;
};

int Check(const HealthOptions& options) {
  std::string address = options.address;
  if (options.process) {
    const Result<std::string> found = AddressOfProcess(*options.process);
    if (!found.ok()) {
      return ReportError(found.error());
    }
    address = found.value();
  }
  const auto stub = grpc::health::v1::Health::NewStub(Connect(address));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(static_cast<int>(options.timeout_s * 1000)));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(options.service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  if (!status.ok()) {
    return FailWith(status);
  }
  using Response = grpc::health::v1::HealthCheckResponse;
  fmt::print("{}\n", Response::ServingStatus_Name(response.status()));
  return response.status() == Response::SERVING ? 0 : 1;
}

}  // namespace

void AddHealthcheckCommand(CLI::App& app, int& exit_code) {
  CLI::App* command = app.add_subcommand("healthcheck", "Exit with 0 if a server is ready");
  auto options = std::make_shared<HealthOptions>();
  CLI::Option* address = command->add_option("--address", options->address, "Server");
  address->check(ServerAddress())->capture_default_str();
  command
      ->add_option("--process", options->process,
                   "Ask the dsa serve of this process id, where its command line has it listen; 1 "
                   "is a container's own")
      ->check(CLI::PositiveNumber)
      ->excludes(address);
  command->add_option("--service", options->service,
                      "Name to ask for, such as liveness; empty is the whole server");
  command->add_option("--timeout", options->timeout_s, "Seconds to wait")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  command->callback([options, &exit_code] { exit_code = Check(*options); });
}

}  // namespace dsa
