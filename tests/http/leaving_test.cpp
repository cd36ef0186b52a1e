// Clients that leave, before their answer or behind it: what they asked for ends, and what the
// server says last reaches them.
#include "server/http/last_bytes.h"
#include "tests/http/raw_client.h"
#include "tests/http/serving.h"
#include "tests/processor_time.h"

#include <future>
#include <utility>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::leaving_test {
namespace {

using testing::Completion;
using testing::Eventually;
using testing::Exchange;
using testing::FreePort;
using testing::Get;
using testing::HttpServing;
using testing::LetThreadsRead;
using testing::Post;
using testing::ProcessorSecondsOf;
using testing::RawClient;
using testing::Reply;
using testing::SteppedEngine;

TEST_CASE("a client that sends its whole body first reads why it was refused", "[http][abuse]") {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  SteppedEngine engine;
  HttpServerConfig config = FreePort();
  config.memory_bytes_max = 1'000'000;
  HttpServing serving(engine.loop(), nullptr, config);
  const auto head = [](std::size_t bytes) {
    return fmt::format(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: {}\r\n\r\n",
        bytes);
  };
  for (const auto& [bytes, status] : {std::pair(16 * kMiB, 503), std::pair(28 * kMiB, 413)}) {
    CAPTURE(bytes);
    RawClient client(serving.port());
    CHECK(client.Send(head(bytes) + std::string(bytes, ' ')));
    CHECK(client.Read().value_or(Reply{}).status == status);
  }
  // Not for ever: neither what is sent on and on, nor who says nothing more.
  RawClient endless(serving.port());
  CHECK_FALSE(endless.Send(head(100 * kMiB) + std::string(100 * kMiB, ' ')));
  RawClient silent(serving.port());
  silent.Send(head(100 * kMiB));
  CHECK(silent.Read().value_or(Reply{}).status == 413);
  CHECK(Eventually([&] { return serving.server().connections() == 0; }));
}

TEST_CASE("a client's last bytes are read for a while", "[http]") {
  constexpr std::int64_t kBodyMs = 3 * LastBytes::kSilentMsMax;
  LastBytes sending(3'000'000, kBodyMs);
  CHECK(sending.Take(6'000'000));
  CHECK_FALSE(sending.Take(1));
  LastBytes slow(1, kBodyMs);
  CHECK(slow.Take(std::size_t{4} << 20));
  CHECK(slow.GoesOn());
  CHECK(slow.Take(0));
  CHECK(slow.GoesOn());
  CHECK_FALSE(slow.Take(1));
  CHECK_FALSE(slow.GoesOn());  // three periods
  LastBytes silent(1, kBodyMs);
  CHECK(silent.Take(1));
  CHECK(silent.GoesOn());
  CHECK_FALSE(silent.GoesOn());
}

TEST_CASE("a client that leaves frees what it had", "[http][abuse]") {
  constexpr int kTokens = 4000;
  SteppedEngine engine;
  HttpServing serving(engine.loop(), nullptr, FreePort());
  for (const bool stream : {false, true}) {
    engine.steps().Hold();
    RawClient client(serving.port());
    client.Send(Completion(kTokens, stream));
    CHECK(Eventually([&] { return engine.loop().Load().running == 1; }));
    const std::int64_t before = engine.loop().Load().steps;
    client.Close();
    CHECK(Eventually([&] {
      engine.steps().LetPass(1);
      return engine.loop().Load().running == 0;
    }));
    CHECK(engine.loop().Load().steps - before < kTokens / 2);
    CHECK(engine.BecomesQuiet());
    CHECK(Eventually([&] { return serving.server().connections() == 0; }));
    engine.steps().Resume();
  }
}

TEST_CASE("nothing begins for clients that have left with their request", "[http][abuse]") {
  testing::FakeEngine engine;
  HttpServing serving(engine, nullptr, FreePort());
  for (int i = 0; i < 50; ++i) {
    RawClient client(serving.port());
    client.SendLast(Completion(10, i % 2 == 0));
  }
  LetThreadsRead(serving.port());
  const std::size_t begun = engine.submitted();
  CHECK(begun == 0);
  for (std::size_t i = 0; i < begun; ++i) {  // or the server waits for them
    engine.Wait(i)->sink->OnDelta(testing::LastDelta(FinishReason::kCancelled));
  }
  CHECK(Eventually([&] { return serving.server().connections() == 0; }));
  RawClient stays(serving.port());
  stays.Send(Completion(10, true));
  const auto submitted = engine.Wait(begun);
  REQUIRE(submitted);
  submitted->sink->OnDelta(testing::LastDelta(FinishReason::kStop));
  CHECK(stays.Read().value_or(Reply{}).status == 200);
}

TEST_CASE("the text of a client that has left before its turn is not read", "[http][abuse]") {
  SteppedEngine engine;
  HttpServing serving(engine.loop(), &testing::ChatTokenizer(), FreePort());
  const std::string request =
      Post("/tokenize", R"({"prompt": ")" + std::string(60'000, '1') + "\"}");
  const auto ask = [&] { CHECK(Exchange(serving.port(), request).status == 200); };
  const double alone_s = ProcessorSecondsOf(ask);
  std::promise<void> go_on;
  const std::shared_future<void> held = go_on.get_future().share();
  REQUIRE(serving.context().workers.Do(request.size(), [held] { held.wait(); }).ok());
  constexpr int kLeaving = 100;
  for (int i = 0; i < kLeaving; ++i) {
    RawClient client(serving.port());
    client.Send(request);
  }
  CHECK(Eventually([&] { return serving.server().acceptor().open() == 0; }));
  LetThreadsRead(serving.port());
  const double behind_them_s = ProcessorSecondsOf([&] {
    go_on.set_value();
    ask();
  });
  CHECK(behind_them_s < alone_s * kLeaving / 2);
}

}  // namespace
}  // namespace dsa::leaving_test
