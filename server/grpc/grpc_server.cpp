#include "server/grpc/grpc_server.h"

#include "server/grpc/grpc_library.h"
#include "server/grpc/health_service.h"
#include "server/grpc/reflection_service.h"
#include "server/grpc/v1/services.h"
#include "server/grpc/vllm/services.h"
#include "server/grpc/xai/services.h"
#include "server/net/listen_sockets.h"

#include <chrono>
#include <mutex>
#include <utility>
#include <vector>

#include <google/protobuf/stubs/logging.h>
#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

namespace dsa {
namespace {

// Once a process, before the first server.
void ConfigureLibraries() {
  static std::once_flag once;
  std::call_once(once, [] {
    PrepareGrpcLibrary();
    // Protobuf would write a line with the client's bytes for every bad string.
    google::protobuf::SetLogHandler(nullptr);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  });
}

void SetLimits(const GrpcServerConfig& config, grpc::ServerBuilder& builder) {
  constexpr int kKeepaliveMs = 30'000;  // finds dead clients, whose blocks are then freed
  constexpr int kKeepaliveTimeoutMs = 10'000;
  constexpr int kMetadataBytesMax = 16 << 10;
  constexpr int kOnlyIdentity = 1;  // a bit set of grpc_compression_algorithm
  builder.SetMaxReceiveMessageSize(static_cast<int>(config.message_bytes_max));
  builder.SetMaxSendMessageSize(-1);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             static_cast<int>(config.guard.streams_max));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             static_cast<int>(config.ping_interval_ms_min));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMetadataBytesMax);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                             static_cast<int>(config.handshake_ms_max));
  builder.AddChannelArgument(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, kOnlyIdentity);
  grpc::ResourceQuota quota("dsa");
  quota.Resize(static_cast<std::size_t>(config.memory_bytes_max));
  builder.SetResourceQuota(quota);
}

std::vector<std::string> NamesOf(const std::vector<NamedService>& services) {
  std::vector<std::string> names;
  names.reserve(services.size());
  for (const NamedService& service : services) {
    names.push_back(service.name);
  }
  return names;
}

// Of every protocol, but for health, which is told their names.
std::vector<NamedService> MakeServices(ServiceContext& context) {
  std::vector<NamedService> services;
  services.push_back(MakeChatService(context));
  services.push_back(MakeCompletionService(context));
  services.push_back(MakeTokenService(context));
  services.push_back(MakeModelService(context));
  services.push_back(MakeAdminService(context));
  services.push_back(MakeVllmService(context));
  services.push_back(MakeXaiChatService(context));
  services.push_back(MakeXaiModelsService(context));
  services.push_back(MakeXaiTokenizeService(context));
  services.push_back(MakeXaiAuthService(context));
  std::vector<std::string> names = NamesOf(services);
  names.emplace_back("grpc.health.v1.Health");
  names.emplace_back("grpc.reflection.v1alpha.ServerReflection");  // the library's
  services.push_back(MakeReflectionService(std::move(names)));
  return services;
}

}  // namespace

using Entrance = grpc::experimental::ExternalConnectionAcceptor;

struct GrpcServer::State {
  State(ServiceContext& served, std::vector<NamedService> registered)
      : context(served), services(std::move(registered)), health(NamesOf(services)) {}

  ServiceContext& context;
  const std::vector<NamedService> services;
  HealthService health;
  std::int64_t port = 0;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<Entrance> entrance;  // as long as the acceptor
  std::unique_ptr<Acceptor> acceptor;
};

Result<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerConfig& config,
                                                      ServiceContext& context) {
  ConfigureLibraries();
  auto state = std::make_unique<State>(context, MakeServices(context));
  grpc::ServerBuilder builder;
  SetLimits(config, builder);
  state->entrance = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
      grpc::InsecureServerCredentials());
  builder.RegisterService(&state->health.service());
  for (const NamedService& service : state->services) {
    builder.RegisterService(service.service.get());
  }
  DSA_ASSIGN_OR_RETURN(ListenSockets listening, OpenListenSockets(config.host, config.port));
  state->port = listening.port;
  state->server = builder.BuildAndStart();
  if (state->server == nullptr) {
    return Error{ErrorCode::kInternal, "gRPC cannot be started"};
  }
  DSA_ASSIGN_OR_RETURN(
      state->acceptor,
      Acceptor::Start(std::move(listening),
                      {.connections_max = config.connections_max,
                       .take =
                           [entrance = state->entrance.get()](int listener, int connection) {
                             Entrance::NewConnectionParameters parameters;
                             parameters.listener_fd = listener;
                             parameters.fd = connection;
                             entrance->HandleNewConnection(&parameters);
                           },
                       .relay = RelayOptions{.clock = &context.clock,
                                             .limits = config.guard,
                                             .streams_max = config.streams_max,
                                             .handshake_ms_max = config.handshake_ms_max}}));
  return std::unique_ptr<GrpcServer>(new GrpcServer(std::move(state)));
}

GrpcServer::GrpcServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

GrpcServer::~GrpcServer() {
  Stop(0);
}

std::int64_t GrpcServer::port() const {
  return state_->port;
}

const Acceptor& GrpcServer::acceptor() const {
  return *state_->acceptor;
}

void GrpcServer::BeginDrain() {
  state_->context.draining.store(true, std::memory_order_relaxed);
  state_->health.BeginDrain();
  state_->acceptor->Close();
}

void GrpcServer::SetStalled(bool stalled) {
  state_->health.SetStalled(stalled);
}

void GrpcServer::Stop(std::int64_t limit_us) {
  if (state_->server == nullptr) {
    return;
  }
  state_->acceptor->Close();
  state_->health.EndWatches();
  state_->server->Shutdown(std::chrono::system_clock::now() + std::chrono::microseconds(limit_us));
  state_->server->Wait();
  state_->server.reset();
  state_->acceptor->Stop();
}

}  // namespace dsa
