#include "tests/api/test_server.h"

#include "common/check.h"
#include "server/engine/wakeup.h"

#include <chrono>
#include <utility>

#include <fmt/core.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

namespace dsa::testing {
namespace {

constexpr std::int64_t kContextTokens = 4096;
constexpr std::int32_t kVocabulary = 129280;
constexpr std::int64_t kTopK = 64;

ServedModel TestModel(const TestServerOptions& options) {
  ServedModel model;
  model.id = "m";
  model.model_type = "deepseek_v32";
  model.context_length = options.engine.scheduler.context_tokens_max;
  model.vocabulary = static_cast<std::int32_t>(options.engine.vocabulary);
  model.layers = 4;
  model.index_topk = kTopK;
  model.max_tokens_default = 100;
  if (options.tokenizer != nullptr) {
    model.chat_format = ChatFormat::kV32;
  }
  return model;
}

}  // namespace

EngineConfig TestEngineConfig() {
  constexpr std::int64_t kSequences = 16;
  constexpr std::int32_t kTokensPerBlock = 64;
  return {.scheduler = {.step_tokens_max = 2048,
                        .sequences_max = kSequences,
                        .waiting_max = 64,
                        .context_tokens_max = kContextTokens,
                        .index_topk = kTopK},
          .blocks = kSequences * kContextTokens / kTokensPerBlock,
          .tokens_per_block = kTokensPerBlock,
          .vocabulary = kVocabulary,
          .end_ids = {},
          .cache_identity = "test",
          .hash_bits = 256};
}

GrpcServerConfig TestListenConfig() {
  GrpcServerConfig config;
  config.port = 0;
  return config;
}

TestServer::TestServer(const TestServerOptions& options)
    : decoders_(options.tokenizer == nullptr ? std::make_unique<LetterDecoderFactory>()
                                             : MakeTextDecoderFactory(*options.tokenizer)),
      engine_(std::make_unique<EngineLoop>(
          options.engine,
          EngineLoop::Dependencies{
              .executor = executor_, .clock = clock_, .decoders = decoders_.get()})),
      context_(new ServiceContext{
          .engine = *engine_,
          .clock = clock_,
          .tokenizer = options.tokenizer,
          .model = TestModel(options),
          .server = {.version = "9", .device = "cpu", .configuration_json = "{}", .ready_us = 0},
          .slow_client = options.slow_client,
          .draining = false,
          .request_ids = {},
          .open_calls = {},
          .workers = {}}) {
  executor_.on_execute = [this](const ForwardBatch& batch) {
    executor_.faulty_row = steps_.Enter(batch.tokens);
  };
  engine_->Start();
  Result<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(options.listen, *context_);
  DSA_CHECK(server.ok(), "TestServer: {}", server.error().message);
  server_ = std::move(server).value();
}

TestServer::~TestServer() {
  steps_.Release();
  engine_->Stop();  // ends every call, so that the server has none to wait for
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
  engine_->Drain(limit_us);
  server_->Stop(kLastWritesUs);
  engine_->Stop();
}

bool TestServer::BecomesQuiet() const {
  return Eventually([this] {
    const EngineLoad load = engine_->Load();
    return load.waiting == 0 && load.running == 0 && load.blocks_referenced == 0;
  });
}

bool Eventually(const std::function<bool()>& condition) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > limit) {
      return false;
    }
    Pause(std::chrono::milliseconds(1));
  }
  return true;
}

void Pause(std::chrono::microseconds duration) {
  Wakeup().WaitFor(duration);
}

}  // namespace dsa::testing
