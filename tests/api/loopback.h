// A listening server over a fake engine, and a client beside it.
#pragma once

#include "server/grpc/grpc_server.h"
#include "tests/api/fake_engine.h"

#include <future>
#include <memory>
#include <string>

#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

namespace dsa::testing {

// Message bytes to one method, whatever they are; waits for the status.  Without a deadline of its
// own, `rpc` should have one: the fake engine answers nothing by itself.
inline grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel,
                            const std::string& method, const std::string& bytes,
                            grpc::ClientContext& rpc) {
  grpc::GenericStub stub(channel);
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  stub.UnaryCall(&rpc, method, grpc::StubOptions(), &request, &response,
                 [&](grpc::Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}

inline grpc::Status CallRaw(const std::shared_ptr<grpc::Channel>& channel,
                            const std::string& method, const std::string& bytes) {
  grpc::ClientContext rpc;
  rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  return CallRaw(channel, method, bytes, rpc);
}

inline ServedModel LoopbackModel() {
  ServedModel model;
  model.id = "m";
  model.model_type = "deepseek_v32";
  model.context_length = 4096;
  model.masked_mha_until = 3072;
  model.vocabulary = 129280;
  model.layers = 4;
  model.index_topk = 64;
  model.end_ids = {TokenId{1}};
  model.max_tokens_default = 100;
  return model;
}

struct Loopback {
  explicit Loopback(const Tokenizer* tokenizer) {
    context.reset(new ServiceContext{
        .engine = engine,
        .clock = clock,
        .tokenizer = tokenizer,
        .model = LoopbackModel(),
        .server = {.version = "9", .device = "cpu", .configuration_json = "{}", .ready_us = 0},
        .slow_client = {},
        .draining = false,
        .request_ids = {},
        .open_calls = {},
        .workers = {}});
    if (tokenizer != nullptr) {
      context->model.chat_format = ChatFormat::kV32;
    }
    GrpcServerConfig config;
    config.port = 0;
    server = std::move(GrpcServer::Start(config, *context)).value();
    grpc::ChannelArguments arguments;
    arguments.SetInt("grpc.use_local_subchannel_pool", 1);
    channel = grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", server->port()),
                                        grpc::InsecureChannelCredentials(), arguments);
  }

  FakeEngine engine;
  SteadyClock clock;
  std::unique_ptr<ServiceContext> context;
  std::unique_ptr<GrpcServer> server;
  std::shared_ptr<grpc::Channel> channel;
};

}  // namespace dsa::testing
