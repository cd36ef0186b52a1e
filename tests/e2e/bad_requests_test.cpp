// What is refused harms nobody: bad requests beside a stream of the real model.
#include "tests/api/loopback.h"
#include "tests/e2e/tiny_server.h"
#include "tests/sanitized.h"

#include <functional>
#include <limits>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::Answer;
using testing::Ask;
using testing::CallRaw;
using testing::Numbered;
using testing::Server;
using testing::TinyConfig;

constexpr const char* kComplete = "/dsa.v1.CompletionService/Complete";
constexpr int kTokens = testing::kSanitized ? 80 : 200;

v1::CompletionRequest Long() {
  v1::CompletionRequest request = Numbered(3);
  request.mutable_stop()->set_max_tokens(kTokens);
  return request;
}

struct BadRequest {
  std::string what;
  std::string bytes;
  grpc::StatusCode code;
};

// A valid request, changed.
std::string Changed(const std::function<void(v1::CompletionRequest&)>& change) {
  v1::CompletionRequest request = Numbered(1);
  change(request);
  return request.SerializeAsString();
}

std::vector<BadRequest> BadRequests() {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const auto invalid = grpc::StatusCode::INVALID_ARGUMENT;
  return {
      {"malformed protobuf", "\xff\xff\xff", invalid},
      {"text that is not UTF-8", std::string("\x0a\x02\xff\xfe", 4), invalid},
      {"oversize", std::string((16 << 20) + 1, 'x'), grpc::StatusCode::RESOURCE_EXHAUSTED},
      {"unknown model", Changed([](auto& r) { r.set_model("other"); }),
       grpc::StatusCode::NOT_FOUND},
      {"NaN", Changed([](auto& r) { r.mutable_sampling()->set_temperature(kNan); }), invalid},
      {"id beyond the vocabulary",
       Changed([](auto& r) { r.mutable_token_ids()->add_ids(testing::kTinyVocabulary); }), invalid},
      {"negative id", Changed([](auto& r) { r.mutable_token_ids()->add_ids(-1); }), invalid},
      {"id of 33 bits", Changed([](auto& r) { r.mutable_token_ids()->add_ids(1LL << 32); }),
       invalid},
      {"empty prompt", Changed([](auto& r) { r.mutable_token_ids()->clear_ids(); }), invalid},
      {"more than the context", Changed([](auto& r) { r.mutable_stop()->set_max_tokens(512); }),
       invalid},
      {"too many answers", Changed([](auto& r) { r.mutable_sampling()->set_n(17); }), invalid},
      {"not there yet",
       Changed([](auto& r) { r.mutable_response_format()->set_type("json_object"); }),
       grpc::StatusCode::UNIMPLEMENTED},
  };
}

}  // namespace

TEST_CASE("bad requests beside a stream leave its tokens as they are", "[e2e]") {
  Answer alone;
  {
    Server server(TinyConfig());
    alone = Ask(server.channel, Long());
    REQUIRE(alone.status.ok());
    REQUIRE(alone.ids.size() == kTokens);
  }
  Server server(TinyConfig());
  const auto stub = v1::CompletionService::NewStub(server.channel);
  grpc::ClientContext rpc;
  const auto reader = stub->CompleteStream(&rpc, Long());
  v1::CompletionStreamResponse part;
  REQUIRE(reader->Read(&part));
  std::vector<std::int64_t> ids(part.token_ids().begin(), part.token_ids().end());
  std::string text = part.text();
  for (const BadRequest& bad : BadRequests()) {
    CAPTURE(bad.what);
    for (const char* method : {kComplete, "/dsa.v1.CompletionService/CompleteStream"}) {
      const grpc::Status status = CallRaw(server.channel, method, bad.bytes);
      CAPTURE(status.error_message());
      CHECK(status.error_code() == bad.code);
      CHECK_FALSE(status.error_message().empty());
    }
  }
  {
    grpc::ClientContext compressed;
    compressed.set_compression_algorithm(GRPC_COMPRESS_GZIP);
    const std::string bytes = Changed([](auto& r) { r.set_cache_salt(std::string(250, 's')); });
    CHECK(CallRaw(server.channel, kComplete, bytes, compressed).error_code() ==
          grpc::StatusCode::UNIMPLEMENTED);
  }
  {
    grpc::ClientContext late;
    late.set_deadline(std::chrono::system_clock::now() - std::chrono::seconds(1));
    CHECK(CallRaw(server.channel, kComplete, Changed([](auto&) {}), late).error_code() ==
          grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  // None of them took a block, or a place in the queue.
  const EngineLoad load = server.app->engine().Load();
  CHECK(load.waiting == 0);
  CHECK(load.running <= 1);
  while (reader->Read(&part)) {
    ids.insert(ids.end(), part.token_ids().begin(), part.token_ids().end());
    text += part.text();
  }
  CHECK(reader->Finish().ok());
  CHECK(ids == alone.ids);
  CHECK(text == alone.text);
}

}  // namespace dsa
