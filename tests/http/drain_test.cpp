// What clients see of a server that drains.
#include "tests/http/raw_client.h"
#include "tests/http/serving.h"

#include <catch2/catch.hpp>

namespace dsa::drain_test {
namespace {

using testing::FreePort;
using testing::Get;
using testing::HttpServing;
using testing::Post;
using testing::RawClient;
using testing::Reply;
using testing::SteppedEngine;

constexpr std::string_view kCompletions = "/v1/completions";

TEST_CASE("a drain lets what runs finish and refuses the rest", "[http]") {
  SteppedEngine engine;
  HttpServing serving(engine.loop(), nullptr, FreePort());
  engine.steps().Hold();
  RawClient running(serving.port());
  running.Send(Post(kCompletions, R"({"prompt": [1, 2], "max_tokens": 3})"));
  CHECK(testing::Eventually([&] { return engine.loop().Load().running == 1; }));
  RawClient idle(serving.port());
  RawClient probe(serving.port());
  RawClient silent(serving.port());
  CHECK(testing::Eventually([&] { return serving.server().connections() == 4; }));
  RawClient waiting(serving.port());
  waiting.Send(Post(kCompletions, R"({"prompt": [1, 2], "max_tokens": 3})"));
  CHECK(testing::Eventually([&] { return engine.loop().Load().waiting == 1; }));
  serving.server().BeginDrain();
  // Who is connected hears why, and is to connect elsewhere.
  idle.Send(Post(kCompletions, R"({"prompt": [3]})"));
  probe.Send(Get("/ready"));
  for (RawClient* client : {&idle, &probe}) {
    const std::optional<Reply> refused = client->Read();
    REQUIRE(refused);
    CHECK(refused->status == 503);
    CHECK(refused->body.find(R"("message":"draining: )") != std::string::npos);
    CHECK(refused->headers.at("connection") == "close");
    CHECK(refused->headers.count("retry-after") == 1);
    CHECK(client->IsClosed());
  }
  running.Send(Post(kCompletions, R"({"prompt": [3]})"));  // behind the one that runs
  engine.steps().Resume();
  const std::optional<Reply> answer = running.Read();
  REQUIRE(answer);
  CHECK(answer->status == 200);
  CHECK(answer->headers.at("connection") == "close");
  CHECK(running.IsClosed());
  serving.server().Stop(10'000'000);
  CHECK(silent.IsClosed());
  CHECK(serving.server().connections() == 0);
}

}  // namespace
}  // namespace dsa::drain_test
