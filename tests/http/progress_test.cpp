// What an operator sees of HTTP: its lines in the log, and whether its threads get on.
#include "server/http/loop_probe.h"
#include "server/http/transport.h"
#include "tests/http/raw_client.h"
#include "tests/http/serving.h"
#include "tests/log_capture.h"

#include <algorithm>
#include <functional>
#include <mutex>
#include <string_view>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::progress_test {
namespace {

using testing::Eventually;
using testing::Exchange;
using testing::FakeEngine;
using testing::FreePort;
using testing::Get;
using testing::HttpServing;
using testing::Post;
using testing::RawClient;
using testing::Reply;
using testing::SteppedEngine;

TEST_CASE("every request but those of probes is one line of the log", "[http]") {
  const testing::LogCapture log;
  FakeEngine engine;
  {
    HttpServing serving(engine, nullptr, FreePort());
    const auto ask = [&](const std::string& request) { Exchange(serving.port(), request); };
    ask(Get("/health"));
    ask(Get("/ready"));
    ask(Get("/v1/models"));
    ask(Get("/v1/models/other"));
    ask(Get("/no\"such?path"));
    ask(Get("/v1/chat/completions"));
    ask(Post("/tokenize", R"({"prompt": 3})", "X-Request-Id: mine\r\n"));
    ask(Post("/v1/completions", R"({"prompt": 3})"));
  }
  CHECK(log.Lines("request").size() == 6);
  // The line that has all these words.
  const auto has = [&](const std::vector<std::string_view>& words) {
    const std::vector<std::string> lines = log.Lines(std::string(words[0]));
    return lines.size() == 1 && std::all_of(words.begin(), words.end(), [&](std::string_view word) {
             return lines[0].find(word) != std::string::npos;
           });
  };
  CHECK(has({"status=200", "/v1/models"}));
  CHECK(has({"/v1/models/other", "status=404", "is not served"}));
  CHECK(has({"such", "status=404", "no such path"}));
  CHECK(has({"status=405", "only POST"}));
  CHECK(has({"/tokenize", "status=400", "id=\"mine\""}));
  CHECK(has({"/v1/completions", "code=\"INVALID_ARGUMENT\""}));
}

TEST_CASE("a flood of requests that are none is a line a second, with their number",
          "[http][abuse]") {
  const testing::LogCapture log;
  SteppedEngine engine;
  {
    HttpServing serving(engine.loop(), nullptr, FreePort());
    for (int i = 0; i < 50; ++i) {
      CHECK(Exchange(serving.port(), "GET /\x01\r\n\r\n").status == 400);
    }
  }
  const std::vector<std::string> lines = log.Lines("HTTP request refused");
  CHECK_FALSE(lines.empty());
  CHECK(lines.size() < 50);
  CHECK(lines[0].find("status=400") != std::string::npos);
}

TEST_CASE("a thread that has yet to answer is not asked again", "[http]") {
  LoopProbe probe;
  std::vector<std::function<void()>> posted;
  const auto ask = [&] {
    return probe.Ask([&](std::function<void()> handler) { posted.push_back(std::move(handler)); });
  };
  CHECK_FALSE(ask().pending);
  for (int i = 0; i < 3; ++i) {
    const LoopAnswers answers = ask();
    CHECK(answers.pending);
    CHECK(answers.count == 0);
  }
  REQUIRE(posted.size() == 1);
  posted[0]();
  const LoopAnswers answers = ask();
  CHECK_FALSE(answers.pending);
  CHECK(answers.count == 1);
  CHECK(posted.size() == 2);
}

TEST_CASE("a thread of HTTP that is held up answers nobody, and says so", "[http]") {
  std::mutex held;
  std::unique_lock lock(held);
  TransportConfig config;
  std::unique_ptr<Transport> transport =
      std::move(
          Transport::Start(
              config,
              [&held](HttpRequest&& /*request*/, const std::shared_ptr<HttpExchange>& exchange) {
                const std::lock_guard wait(held);
                exchange->Respond({});
                return std::shared_ptr<HttpCall>();
              },
              [](const HttpFault& fault) { return fault.message; }))
          .value();
  const auto gets_on = [&] {
    const std::int64_t before = transport->AskLoops().count;
    return Eventually([&] { return transport->AskLoops().count > before; });
  };
  CHECK(gets_on());
  RawClient client(transport->port());
  client.Send(Get("/"));
  // One of the two stands still: with it the least count of both.
  CHECK(Eventually([&] {
    const std::int64_t before = transport->AskLoops().count;
    for (int i = 0; i < 50; ++i) {
      testing::Pause(std::chrono::milliseconds(2));
      if (!transport->AskLoops().pending || transport->AskLoops().count != before) {
        return false;
      }
    }
    return true;
  }));
  lock.unlock();
  CHECK(gets_on());
  CHECK(client.Read().value_or(Reply{}).status == 200);
}

}  // namespace
}  // namespace dsa::progress_test
