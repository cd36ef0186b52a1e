// The whole server on a small random model, over loopback.
#include "kernels/cpu/cpu_backend.h"
#include "proto/admin.grpc.pb.h"
#include "proto/chat.grpc.pb.h"
#include "proto/completion.grpc.pb.h"
#include "server/net/listen_sockets.h"
#include "server/sizing.h"
#include "tests/e2e/tiny_server.h"
#include "tests/paths.h"
#include "tests/sanitized.h"

#include <atomic>
#include <thread>

#include <catch2/catch.hpp>
#include <fmt/core.h>
#include <poll.h>

namespace dsa {
namespace {

using testing::Answer;
using testing::Ask;
using testing::kTinyTopK;
using testing::Numbered;
using testing::Server;
using testing::TinyConfig;

template <typename Condition>
bool Within30s(const Condition& condition) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > limit) {
      return false;
    }
    poll(nullptr, 0, 1);
  }
  return true;
}

// Waits until no request is live and no block is referenced.
bool BecomesQuiet(Engine& engine) {
  return Within30s([&] {
    const EngineLoad load = engine.Load();
    return load.waiting == 0 && load.running == 0 && load.blocks_referenced == 0;
  });
}

// A request that runs until it is stopped, however fast the machine and slow its client, and the
// server that has room for it.
v1::CompletionRequest Endless() {
  v1::CompletionRequest request = Numbered(1);
  request.mutable_stop()->set_max_tokens(30'000);
  return request;
}
ServerConfig EndlessConfig() {
  ServerConfig config = TinyConfig();
  config.max_model_len = 32'000;
  config.max_num_seqs = 4;
  return config;
}

}  // namespace

TEST_CASE("64 concurrent streams equal isolated runs", "[e2e]") {
  constexpr int kStreams = testing::kSanitized ? 8 : 64;
  // Alone in chunks by tokens, together in chunks by what steps take on this machine.
  ServerConfig config = TinyConfig();
  config.step_time_target_ms = 0;
  std::vector<Answer> alone;
  {
    Server server(config);
    for (int i = 0; i < kStreams; ++i) {
      alone.push_back(Ask(server.channel, Numbered(i)));
      REQUIRE(alone.back().status.ok());
      CHECK(static_cast<int>(alone.back().ids.size()) == 6 + i % 7);
    }
  }
  config.step_time_target_ms = 3;
  Server server(config);
  std::vector<Answer> together(kStreams);
  std::vector<std::thread> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back([&, i] { together[i] = Ask(server.channel, Numbered(i)); });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  for (int i = 0; i < kStreams; ++i) {
    CAPTURE(i);
    CHECK(together[i].status.ok());
    CHECK(together[i].ids == alone[i].ids);
    CHECK(together[i].text == alone[i].text);
    CHECK(together[i].last.seed() == static_cast<std::uint64_t>(i));
  }
  CHECK(BecomesQuiet(server.app->engine()));
  // Once more, now from the prefix cache.
  const Answer again = Ask(server.channel, Numbered(3));
  CHECK(again.ids == alone[3].ids);
  CHECK(again.last.usage().cache_hit_tokens() > 0);
}

TEST_CASE("cancel, deadline and abort free their blocks", "[e2e]") {
  Server server(EndlessConfig());
  const auto stub = v1::CompletionService::NewStub(server.channel);
  {
    grpc::ClientContext rpc;
    const auto reader = stub->CompleteStream(&rpc, Endless());
    v1::CompletionStreamResponse part;
    REQUIRE(reader->Read(&part));
    rpc.TryCancel();
    while (reader->Read(&part)) {
    }
    CHECK(reader->Finish().error_code() == grpc::StatusCode::CANCELLED);
    CHECK(BecomesQuiet(server.app->engine()));
  }
  {
    grpc::ClientContext rpc;
    rpc.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
    v1::CompletionRequest request = Endless();
    const Answer answer = Ask(server.channel, request, rpc);
    CHECK(answer.status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED);
    CHECK(BecomesQuiet(server.app->engine()));
  }
  {
    grpc::ClientContext rpc;
    v1::CompletionRequest request = Endless();
    request.set_request_id("doomed");
    const auto reader = stub->CompleteStream(&rpc, request);
    v1::CompletionStreamResponse part;
    REQUIRE(reader->Read(&part));
    grpc::ClientContext admin_rpc;
    v1::AbortRequest abort;
    abort.set_request_id("doomed");
    v1::AbortResponse response;
    CHECK(v1::AdminService::NewStub(server.channel)->Abort(&admin_rpc, abort, &response).ok());
    CHECK(response.aborted());
    v1::CompletionStreamResponse last;
    while (reader->Read(&part)) {
      last = part;
    }
    CHECK(reader->Finish().ok());
    CHECK(last.finish_reason() == v1::FINISH_REASON_ABORTED);
    CHECK(BecomesQuiet(server.app->engine()));
  }
}

TEST_CASE("a full queue refuses at once and the rest finish", "[e2e]") {
  constexpr int kClients = 24;
  constexpr int kPlaces = 2;
  ServerConfig config = EndlessConfig();
  config.max_num_seqs = 1;
  config.max_queued_requests = kPlaces;
  Server server(config);
  grpc::ClientContext rpc;
  const auto running =
      v1::CompletionService::NewStub(server.channel)->CompleteStream(&rpc, Endless());
  v1::CompletionStreamResponse part;
  REQUIRE(running->Read(&part));
  std::atomic<int> fine{0};
  std::atomic<int> refused{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i) {
    clients.emplace_back([&, i] {
      const Answer answer = Ask(server.channel, Numbered(i));
      fine += answer.status.ok() ? 1 : 0;
      refused += answer.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED ? 1 : 0;
    });
  }
  CHECK(Within30s([&] { return refused == kClients - kPlaces; }));
  CHECK(fine == 0);
  rpc.TryCancel();
  while (running->Read(&part)) {
  }
  CHECK(running->Finish().error_code() == grpc::StatusCode::CANCELLED);
  for (std::thread& client : clients) {
    client.join();
  }
  CHECK(fine == kPlaces);
  CHECK(BecomesQuiet(server.app->engine()));
}

TEST_CASE("streams that lose their blocks to each other equal isolated runs", "[e2e]") {
  constexpr int kStreams = 6;
  // 50 tokens and more: each starts with one block and asks for a second 14 tokens later, which
  // three that run together do not all find in a pool of five.
  const auto request = [](int number) {
    v1::CompletionRequest numbered = Numbered(number);
    numbered.mutable_token_ids()->clear_ids();
    for (int i = 0; i < 50; ++i) {
      numbered.mutable_token_ids()->add_ids((number * 131 + i * 17) % 500);
    }
    numbered.mutable_stop()->set_max_tokens(testing::kSanitized ? 24 : 50);
    return numbered;
  };
  ServerConfig config = TinyConfig();
  std::vector<Answer> alone;
  {
    Server server(config);
    for (int i = 0; i < kStreams; ++i) {
      alone.push_back(Ask(server.channel, request(i)));
      REQUIRE(alone.back().status.ok());
    }
  }
  config.max_model_len = 256;
  config.kv_cache_memory_bytes = 5 * BytesPerBlock(3, 3, KvFormat::kFp8);
  for (const char* preemption : {"recompute", "none"}) {
    CAPTURE(preemption);
    config.preemption = preemption;
    Server server(config);
    std::vector<Answer> together(kStreams);
    std::vector<std::thread> clients;
    for (int i = 0; i < kStreams; ++i) {
      clients.emplace_back([&, i] { together[i] = Ask(server.channel, request(i)); });
    }
    for (std::thread& client : clients) {
      client.join();
    }
    std::int64_t preemptions = 0;
    for (int i = 0; i < kStreams; ++i) {
      CAPTURE(i);
      CHECK(together[i].status.ok());
      CHECK(together[i].ids == alone[i].ids);
      CHECK(together[i].text == alone[i].text);
      CHECK(together[i].last.usage().preemptions() <= 4);
      preemptions += together[i].last.usage().preemptions();
    }
    CHECK((preemptions > 0) == (config.preemption == "recompute"));
    CHECK(BecomesQuiet(server.app->engine()));
  }
}

TEST_CASE("a stop string ends the text before it, across tokens and in no part of the stream",
          "[e2e]") {
  Server server(TinyConfig());
  v1::CompletionRequest request = Numbered(2);
  request.mutable_stop()->set_max_tokens(60);
  const Answer whole = Ask(server.channel, request);
  REQUIRE(whole.status.ok());
  // Whole characters from the middle, more than a token's.
  const auto begins = [&](std::size_t at) {
    return at == whole.text.size() || (static_cast<unsigned char>(whole.text[at]) & 0xC0U) != 0x80U;
  };
  std::size_t first = whole.text.size() / 2;
  while (!begins(first)) {
    ++first;
  }
  std::size_t end = first + 6;
  while (!begins(end)) {
    ++end;
  }
  const std::string stop = whole.text.substr(first, end - first);
  request.mutable_stop()->add_stop(stop);
  const Answer cut = Ask(server.channel, request);
  REQUIRE(cut.status.ok());
  CHECK(cut.text == whole.text.substr(0, whole.text.find(stop)));
  CHECK(cut.last.finish_reason() == v1::FINISH_REASON_STOP);
  CHECK(cut.ids.size() < whole.ids.size());
  CHECK(cut.last.usage().completion_tokens() == static_cast<std::int64_t>(cut.ids.size()));
}

TEST_CASE("a server that is ready has computed a prompt beyond top-k and a decode step", "[e2e]") {
  Server server(TinyConfig());
  const EngineLoad load = server.app->engine().Load();
  CHECK(load.tokens_computed > kTinyTopK + 1);
  CHECK(load.steps >= 2);
  CHECK(load.requests_finished == 1);
}

TEST_CASE("every key of the configuration reaches the engine", "[e2e]") {
  ServerConfig config = TinyConfig();
  CpuBackend backend(2);
  Backend* const only = &backend;
  ModelConfig model = Checkpoint::Open(config.model).value().config();
  const auto sizes = [&] {
    return SizeServer(config,
                      {.config = model,
                       .weight_bytes = [](const RankPlace&) { return std::int64_t{0}; },
                       .vocabulary_limit = 400},
                      {&only, 1})
        .value();
  };
  const ServerSizes plain = sizes();
  CHECK(plain.engine.scheduler.policy == SchedulingPolicyKind::kFirstCome);
  CHECK(plain.engine.scheduler.reservation == ReservationMode::kPrompt);
  CHECK(plain.engine.scheduler.preemptions_max == 4);
  CHECK(plain.engine.scheduler.attention == AttentionMode::kSparse);
  CHECK(plain.engine.scheduler.index_topk == kTinyTopK);
  CHECK(plain.engine.scheduler.masked_mha_until == 0);
  CHECK(plain.engine.scheduler.step_tokens_max == 64);
  CHECK(plain.engine.scheduler.step_time_target_us == 250'000);
  CHECK(plain.engine.scheduler.sequences_max == 16);
  CHECK(plain.engine.scheduler.context_tokens_max == 512);
  CHECK(plain.engine.tokens_per_block == 64);
  CHECK(plain.engine.blocks == 16 * 8);
  CHECK(plain.executor.kv_format == KvFormat::kFp8);  // the checkpoint's
  CHECK(plain.executor.vocabulary_limit == 400);
  CHECK_FALSE(plain.executor.batch_invariant);
  config.scheduling_policy = "priority";
  config.preemption = "none";
  config.step_time_target_ms = 0;
  config.attention = "dense";
  config.masked_mha_until = 100;
  config.batch_invariant = true;
  config.max_queued_requests = 7;
  config.kv_cache_dtype = "bf16";
  config.kv_cache_memory_bytes = 9 * BytesPerBlock(3, 3, KvFormat::kBf16) + 1;
  const ServerSizes other = sizes();
  CHECK(other.engine.scheduler.policy == SchedulingPolicyKind::kPriority);
  CHECK(other.engine.scheduler.reservation == ReservationMode::kFull);
  CHECK(other.engine.scheduler.step_time_target_us == 0);
  CHECK(other.engine.scheduler.attention == AttentionMode::kDense);
  CHECK(other.engine.scheduler.masked_mha_until == 100);
  CHECK(other.engine.scheduler.waiting_max == 7);
  CHECK(other.engine.blocks == 9);
  CHECK(other.executor.kv_format == KvFormat::kBf16);
  CHECK(other.executor.limits.masked_until == 100);
  CHECK(other.executor.batch_invariant);
  // Keys computed otherwise are not shared.
  CHECK(other.engine.cache_identity != plain.engine.cache_identity);
  // Measured at start on CUDA alone: until then it is the largest that it can become.
  CHECK_FALSE(MeasuresMaskedBorder(config));
  config.device = "cuda";
  CHECK_FALSE(MeasuresMaskedBorder(config));
  config.masked_mha_until = kAutomatic;
  CHECK(MeasuresMaskedBorder(config));
  ServerSizes measured = sizes();
  CHECK(measured.engine.scheduler.masked_mha_until == 512);  // the context
  CHECK(measured.executor.limits.masked_until == 512);
  const std::string identity = measured.engine.cache_identity;
  SetMaskedUntil(config, 0, measured);
  CHECK(measured.engine.scheduler.masked_mha_until == 0);
  CHECK(measured.engine.cache_identity != identity);
  config.device = "cpu";
  CHECK(sizes().executor.limits.masked_until == 0);
  config.kv_cache_dtype = "f32";
  config.kv_cache_memory_bytes = 0;
  CHECK(sizes().executor.kv_format == KvFormat::kF32);
  // Without an indexer nothing is selected.
  model.index_topk = 0;
  config.attention = "sparse";
  CHECK(sizes().engine.scheduler.attention == AttentionMode::kDense);
}

TEST_CASE("a drain lets running streams finish and refuses new ones", "[e2e]") {
  Server server(TinyConfig());
  v1::CompletionRequest request = Endless();
  request.mutable_stop()->set_max_tokens(100);
  const auto stub = v1::CompletionService::NewStub(server.channel);
  grpc::ClientContext rpc;
  const auto reader = stub->CompleteStream(&rpc, request);
  v1::CompletionStreamResponse part;
  REQUIRE(reader->Read(&part));
  std::thread drain([&] { server.app->Drain(); });
  std::size_t ids = part.token_ids_size();
  v1::CompletionStreamResponse last = part;
  while (reader->Read(&part)) {
    ids += part.token_ids_size();
    last = part;
  }
  CHECK(reader->Finish().ok());
  CHECK(ids == 100);
  CHECK(last.finish_reason() == v1::FINISH_REASON_LENGTH);
  drain.join();
  CHECK(Ask(server.channel, Numbered(0)).status.error_code() == grpc::StatusCode::UNAVAILABLE);
}

TEST_CASE("a drain that runs out of time ends the rest as UNAVAILABLE", "[e2e]") {
  ServerConfig config = EndlessConfig();
  config.shutdown_timeout_s = 0;
  Server server(config);
  const auto stub = v1::CompletionService::NewStub(server.channel);
  grpc::ClientContext rpc;
  const auto reader = stub->CompleteStream(&rpc, Endless());
  v1::CompletionStreamResponse part;
  REQUIRE(reader->Read(&part));
  server.app->Drain();
  while (reader->Read(&part)) {
  }
  CHECK(reader->Finish().error_code() == grpc::StatusCode::UNAVAILABLE);
}

TEST_CASE("a chat streams from prompt to usage", "[e2e]") {
  Server server(TinyConfig());
  const auto stub = v1::ChatService::NewStub(server.channel);
  v1::ChatRequest request;
  v1::Message& message = *request.add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_content("Hello!");
  request.mutable_stop()->set_max_tokens(40);
  request.mutable_stop()->set_ignore_eos(true);
  request.mutable_sampling()->set_seed(1);
  request.set_logprobs(true);
  request.set_top_logprobs(3);
  grpc::ClientContext rpc;
  const auto reader = stub->ChatStream(&rpc, request);
  std::string content;
  int logprobs = 0;
  v1::ChatStreamResponse last;
  for (v1::ChatStreamResponse part; reader->Read(&part); last = part) {
    content += part.content();
    logprobs += part.logprobs_size();
    for (const v1::TokenLogprob& token : part.logprobs()) {
      CHECK(token.logprob() <= 0.0F);
      CHECK(token.top_size() == 3);
    }
  }
  const grpc::Status status = reader->Finish();
  INFO(status.error_message());
  REQUIRE(status.ok());
  CHECK(last.usage().completion_tokens() == 40);
  CHECK(logprobs == 40);
  // The unary method gives the same answer.
  grpc::ClientContext unary;
  v1::ChatResponse whole;
  REQUIRE(stub->Chat(&unary, request, &whole).ok());
  CHECK(whole.message().content() == content);
  CHECK(whole.finish_reason() == v1::FINISH_REASON_LENGTH);
}

TEST_CASE("a configuration or model that cannot be is refused before anything listens", "[e2e]") {
  ServerConfig config = TinyConfig();
  config.model = "/nowhere";
  CHECK(App::Start(config).error().message.find("/nowhere") != std::string::npos);
  config = TinyConfig();
  config.max_model_len = 1 << 24;
  CHECK(App::Start(config).error().message.rfind("max_model_len: ", 0) == 0);
  config = TinyConfig();
  config.kv_cache_memory_bytes = 1024;
  CHECK(App::Start(config).error().message.rfind("kv_cache_memory_bytes: ", 0) == 0);
  config = TinyConfig();
  config.tokenizer = testing::SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json");
  const Error error = App::Start(config).error();
  CHECK(error.message.find("vocabulary") != std::string::npos);
  CHECK(ExitCode(error) == 2);
  config = TinyConfig();
  const ListenSockets taken = std::move(OpenListenSockets("127.0.0.1", 0)).value();
  config.listen = "127.0.0.1:0";
  config.http_listen = fmt::format("127.0.0.1:{}", taken.port);
  CHECK(App::Start(config).error().message ==
        fmt::format("http_listen: {} cannot be bound: another program listens there",
                    config.http_listen));
  config.listen = config.http_listen;
  CHECK(App::Start(config).error().message ==
        fmt::format("http_listen: {} is listen's, too", config.http_listen));
  config = TinyConfig();
  config.device = "cuda";
  CHECK(ExitCode(App::Start(config).error()) == 3);
}

}  // namespace dsa
