#include "tests/api/test_server.h"

#include "common/check.h"

#include <utility>

#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

namespace dsa::testing {

GrpcServerConfig TestListenConfig() {
  GrpcServerConfig config;
  config.port = 0;
  return config;
}

TestServer::TestServer(const TestServerOptions& options)
    : engine_(options.engine,
              options.tokenizer == nullptr ? std::make_unique<LetterDecoderFactory>()
                                           : MakeTextDecoderFactory(*options.tokenizer),
              options.engine_clock),
      context_(MakeTestContext(engine_.loop(), options.clock == nullptr ? clock_ : *options.clock,
                               options.tokenizer, options.slow_client, options.engine)) {
  Result<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(options.listen, *context_);
  DSA_CHECK(server.ok(), "TestServer: {}", server.error().message);
  server_ = std::move(server).value();
}

TestServer::~TestServer() {
  engine_.Stop();  // ends every call, so that the server has none to wait for
}

std::shared_ptr<grpc::Channel> TestServer::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt("grpc.use_local_subchannel_pool", 1);
  return grpc::CreateCustomChannel(fmt::format("127.0.0.1:{}", server_->port()),
                                   grpc::InsecureChannelCredentials(), arguments);
}

void TestServer::Drain(std::int64_t limit_us) {
  constexpr std::int64_t kLastWritesUs = 2'000'000;
  server_->BeginDrain();
  engine_.loop().Drain(limit_us);
  server_->Stop(kLastWritesUs);
  engine_.loop().Stop();
}

}  // namespace dsa::testing
