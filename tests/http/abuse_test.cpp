// What a client can do to the server: it costs a bounded amount and harms no other.
#include "server/http/large_bodies.h"
#include "tests/http/raw_client.h"
#include "tests/http/serving.h"

#include <chrono>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa::abuse_test {
namespace {

using testing::Completion;
using testing::Eventually;
using testing::Exchange;
using testing::FreePort;
using testing::Get;
using testing::HttpServing;
using testing::LetThreadsRead;
using testing::Post;
using testing::RawClient;
using testing::Reply;
using testing::SteppedEngine;

constexpr std::string_view kChat = "/v1/chat/completions";
constexpr std::string_view kCompletions = "/v1/completions";

TEST_CASE("a request may come a byte at a time, and none for ever", "[http][abuse]") {
  SteppedEngine engine;
  HttpServing serving(engine.loop(), nullptr, FreePort());
  RawClient client(serving.port());
  for (const char byte : Completion(2, false)) {
    REQUIRE(client.Send({&byte, 1}));
  }
  const std::optional<Reply> reply = client.Read();
  REQUIRE(reply);
  CHECK(reply->status == 200);

  HttpServerConfig hasty = FreePort();
  hasty.header_ms_max = 50;
  HttpServing impatient(engine.loop(), nullptr, hasty);
  RawClient slow(impatient.port());
  slow.Send("POST /v1/comp");
  const std::optional<Reply> refused = slow.Read();
  REQUIRE(refused);
  CHECK(refused->status == 408);
  CHECK(slow.IsClosed());
}

TEST_CASE("a header of 1 MB and a body without end are refused early", "[http][abuse]") {
  SteppedEngine engine;
  HttpServerConfig config = FreePort();
  config.message_bytes_max = 100'000;
  HttpServing serving(engine.loop(), nullptr, config);
  RawClient header(serving.port());
  header.Send("GET /health HTTP/1.1\r\nX: " + std::string(1 << 20, 'x') + "\r\n\r\n");
  const std::optional<Reply> too_large = header.Read();
  REQUIRE(too_large);
  CHECK(too_large->status == 431);
  CHECK(header.IsClosed());

  RawClient body(serving.port());
  body.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n");
  const std::string chunk = "1000\r\n" + std::string(0x1000, ' ') + "\r\n";
  for (int i = 0; i < 30; ++i) {
    body.Send(chunk);
  }
  const std::optional<Reply> endless = body.Read();
  REQUIRE(endless);
  CHECK(endless->status == 413);

  RawClient announced(serving.port());
  announced.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
      "Expect: 100-continue\r\nContent-Length: 100001\r\n\r\n");
  const std::optional<Reply> unsent = announced.Read();
  REQUIRE(unsent);
  CHECK(unsent->status == 413);
}

TEST_CASE("all requests together have a limit of memory", "[http][abuse]") {
  SteppedEngine engine;
  HttpServerConfig config = FreePort();
  config.memory_bytes_max = 100'000;
  HttpServing serving(engine.loop(), nullptr, config);
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
      "Content-Length: 90000\r\n\r\n";
  RawClient first(serving.port());
  first.Send(head + std::string(80'000, ' '));
  LetThreadsRead(serving.port());
  const std::string second = head + std::string(90'000, ' ');
  CHECK(Exchange(serving.port(), second).status == 503);
  // What is refused, or has left, gives back what it held.
  first.Close();
  CHECK(Eventually([&] { return Exchange(serving.port(), second).status == 400; }));
}

TEST_CASE("answers that nobody reads have a limit of memory", "[http][abuse]") {
  constexpr int kUnread = 6;
  SteppedEngine engine;
  HttpServerConfig config = FreePort();
  config.memory_bytes_max = 13'000'000;  // two answers and what is read meanwhile
  config.write_ms_max = 600'000;         // how slow the machine is does not matter here
  HttpServing serving(engine.loop(), &testing::ChatTokenizer(), config);
  std::string ids = "0";
  for (int i = 1; i < 200'000; ++i) {
    ids += ",0";  // "<｜begin▁of▁sentence｜>": 5.8 MB of text, more than sockets hold
  }
  const std::string request = Post("/detokenize", R"({"tokens": [)" + ids + "]}");
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < kUnread; ++i) {
    clients.push_back(std::make_unique<RawClient>(serving.port(), 4096));
    clients.back()->Send(request);
    // The worker of large bodies has come to it.
    CHECK(Exchange(serving.port(), Post("/tokenize", R"({"prompt": "a", "user": ")" +
                                                         std::string(300'000, 'u') + "\"}"))
              .status == 200);
  }
  int answered = 0;
  int refused = 0;
  for (const auto& client : clients) {
    const std::optional<Reply> reply = client->Read();
    REQUIRE(reply);
    answered += reply->status == 200 ? 1 : 0;
    refused += reply->status == 503 ? 1 : 0;
  }
  CHECK(answered >= 1);
  CHECK(answered <= 3);
  CHECK(refused == kUnread - answered);
  CHECK(Exchange(serving.port(), request).status == 200);  // what was read is given back
}

// A request whose body is large, its last `kept` bytes not among them.
std::string LargeBeginning(std::size_t kept) {
  const std::string whole = Post(kCompletions, R"({"prompt": [1], "max_tokens": 1, "user": ")" +
                                                   std::string(300'000, 'x') + "\"}");
  return whole.substr(0, whole.size() - kept);
}
constexpr std::string_view kLargeEnd = "\"}";

TEST_CASE("the place of large bodies goes round in order", "[http]") {
  LargeBodies bodies;
  std::vector<int> granted;
  const auto asks = [&](int who, bool is_there) {
    return bodies.Take([&granted, who, is_there] {
      granted.push_back(who);
      return is_there;
    });
  };
  CHECK(asks(0, true));
  CHECK_FALSE(asks(1, true));
  CHECK_FALSE(asks(2, false));
  CHECK_FALSE(asks(3, true));
  bodies.Give();
  CHECK(granted == std::vector<int>{1});
  bodies.Give();  // 2 is gone
  CHECK(granted == std::vector<int>{1, 2, 3});
  bodies.Give();
  CHECK(asks(4, true));
}

TEST_CASE("large bodies are read one at a time, beside small ones", "[http][abuse]") {
  constexpr int kOthers = 4;
  SteppedEngine engine;
  HttpServerConfig config = FreePort();
  config.body_ms_max = 600'000;         // how slow the machine is does not matter here
  config.memory_bytes_max = 1'300'000;  // six large bodies are more
  HttpServing serving(engine.loop(), nullptr, config);
  RawClient first(serving.port());
  first.Send(LargeBeginning(kLargeEnd.size()));
  LetThreadsRead(serving.port());
  RawClient leaving(serving.port());
  leaving.Send(LargeBeginning(0));
  LetThreadsRead(serving.port());
  std::vector<std::unique_ptr<RawClient>> others;
  for (int i = 0; i < kOthers; ++i) {
    others.push_back(std::make_unique<RawClient>(serving.port()));
    others.back()->Send(LargeBeginning(0));
  }
  leaving.Close();
  LetThreadsRead(serving.port());
  CHECK(Exchange(serving.port(), Completion(1, false)).status == 200);
  first.Send(kLargeEnd);
  CHECK(first.Read().value_or(Reply{}).status == 200);
  for (const auto& other : others) {
    CHECK(other->Read().value_or(Reply{}).status == 200);
  }
  CHECK(Exchange(serving.port(), LargeBeginning(0)).status == 200);
}

TEST_CASE("who waits for others' large bodies hears so", "[http][abuse]") {
  SteppedEngine engine;
  HttpServerConfig config = FreePort();
  config.body_ms_max = 2'000;
  HttpServing serving(engine.loop(), nullptr, config);
  const std::string large = LargeBeginning(0);
  const std::size_t body = large.find("\r\n\r\n") + 4;
  const auto began = std::chrono::steady_clock::now();
  RawClient waiting(serving.port());
  waiting.Send(large.substr(0, body));  // its time begins before the other's
  LetThreadsRead(serving.port());
  RawClient other(serving.port());
  other.Send(LargeBeginning(kLargeEnd.size()));
  LetThreadsRead(serving.port());
  waiting.Send(large.substr(body));
  LetThreadsRead(serving.port());
  const bool in_time = std::chrono::steady_clock::now() - began < std::chrono::seconds(1);
  const int status = waiting.Read().value_or(Reply{}).status;
  if (in_time) {  // a machine that slow shows nothing
    CHECK(status == 503);
  }
  CHECK(other.Read().value_or(Reply{}).status == 408);
  CHECK(Exchange(serving.port(), large).status == 200);
}

TEST_CASE("a body counts until it has been read, and no longer", "[http][abuse]") {
  SteppedEngine engine;
  HttpServerConfig config = FreePort();
  config.memory_bytes_max = 100'000;
  HttpServing serving(engine.loop(), nullptr, config);
  engine.steps().Hold();
  const auto padded = [](int bytes) {
    return Post(kCompletions, R"({"prompt": [1], "max_tokens": 1, "user": ")" +
                                  std::string(static_cast<std::size_t>(bytes), 'x') + "\"}");
  };
  RawClient first(serving.port());
  first.Send(padded(80'000));
  CHECK(Eventually([&] { return engine.loop().Load().running == 1; }));
  LetThreadsRead(serving.port());  // the engine may begin before its thread has given the body back
  RawClient second(serving.port());
  second.Send(padded(80'000));
  engine.steps().Resume();
  CHECK(first.Read().value_or(Reply{}).status == 200);
  CHECK(second.Read().value_or(Reply{}).status == 200);
}

TEST_CASE("who waits for 100 Continue gets it", "[http]") {
  SteppedEngine engine;
  HttpServing serving(engine.loop(), nullptr, FreePort());
  RawClient client(serving.port());
  const std::string request =
      Post(kCompletions, R"({"prompt": [1], "max_tokens": 1})", "Expect: 100-continue\r\n");
  const std::size_t body = request.find("\r\n\r\n") + 4;
  client.Send(request.substr(0, body));
  REQUIRE(client.Read().value_or(Reply{}).status == 100);
  client.Send(request.substr(body));
  CHECK(client.Read().value_or(Reply{}).status == 200);
}

TEST_CASE("requests sent ahead are answered in order", "[http][abuse]") {
  SteppedEngine engine;
  HttpServerConfig config = FreePort();
  config.memory_bytes_max = 200'000;  // some more than one connection may hold
  HttpServing serving(engine.loop(), nullptr, config);
  RawClient client(serving.port());
  constexpr int kRequests = 20'000;
  std::thread sender([&] {
    for (int i = 0; i < kRequests; ++i) {
      const bool generates = i % 1000 == 50;
      client.Send(generates ? Completion(1 + i % 3, i % 2000 == 50) : Get("/version"));
    }
  });
  int answered = 0;
  for (; answered < kRequests; ++answered) {
    const std::optional<Reply> reply = client.Read();
    if (!reply || reply->status != 200 ||
        (reply->body.find("version") == std::string::npos) != (answered % 1000 == 50)) {
      break;
    }
  }
  sender.join();
  CHECK(answered == kRequests);
}

TEST_CASE("an empty line behind a body harms neither the next request nor an idle connection",
          "[http]") {
  SteppedEngine engine;
  HttpServerConfig hasty = FreePort();
  hasty.header_ms_max = 50;
  HttpServing serving(engine.loop(), nullptr, hasty);
  RawClient client(serving.port());
  const auto answers = [&](int status) { return client.Read().value_or(Reply{}).status == status; };
  client.Send("\r\n" + Completion(2, false) + "\r\n" + Completion(2, true) + "\r\n\r\n" +
              Get("/health"));
  CHECK(answers(200));
  CHECK(answers(200));
  CHECK(answers(200));
  // Sent ahead of its answer's end, and behind it: nothing has begun that could be late.
  for (const std::string& request : {Completion(2, false) + "\r\n", Get("/health")}) {
    client.Send(request);
    CHECK(answers(200));
    client.Send("\r\n\r");
    LetThreadsRead(serving.port());
    for (int later = 0; later < 2; ++later) {
      CHECK(Exchange(serving.port(), "GET /").status == 408);
    }
    client.Send("\n");
  }
  client.Send(Get("/health"));
  CHECK(answers(200));
  // One line too many is an answer of its own.
  client.Send("\r\n\r\n\r\n\r\n\r\n" + Get("/health"));
  CHECK(answers(400));
  CHECK(client.IsClosed());
}

TEST_CASE("a client that does not read is dropped, and others get their tokens", "[http][abuse]") {
  constexpr int kAhead = 3;
  // By what waits for it, or by how long its write has been waiting: far longer than a busy machine
  // takes to give a client that reads its bytes.
  const auto limits = GENERATE(
      values<SlowClientLimits>({{.pending_bytes_max = 20'000, .stalled_us_max = 60'000'000},
                                {.pending_bytes_max = 1 << 30, .stalled_us_max = 3'000'000}}));
  SteppedEngine engine;
  HttpServing serving(engine.loop(), &testing::ChatTokenizer(), FreePort(), limits);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 4; ++i) {
    clients.push_back(std::make_unique<RawClient>(serving.port(), 4096));
    // Three replies of 4000 tokens with log-probabilities are more than sockets hold.
    for (int j = 0; j < kAhead; ++j) {
      clients.back()->Send(Post(kChat, R"({"messages": [{"role": "user", "content": "x"}],
                                           "max_tokens": 4000, "stream": true, "logprobs": true,
                                           "top_logprobs": 20})"));
    }
  }
  const Reply victim = Exchange(serving.port(), Completion(50, true));
  CHECK(victim.status == 200);
  CHECK(victim.body.find("[DONE]") != std::string::npos);
  // Their connections end, read or not, before they have all.
  CHECK(Eventually([&] { return serving.server().connections() == 0; }));
  CHECK(engine.BecomesQuiet());
  for (const auto& client : clients) {
    int whole = 0;
    while (client->Read()) {
      ++whole;
    }
    CHECK(whole < kAhead);
  }
}

TEST_CASE("one connection too many is closed, and room comes again", "[http][abuse]") {
  SteppedEngine engine;
  HttpServerConfig config = FreePort();
  config.connections_max = 3;
  HttpServing serving(engine.loop(), nullptr, config);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<RawClient>(serving.port()));
    clients.back()->Send(Get("/health"));
    CHECK(clients.back()->Read().value_or(Reply{}).status == 200);
  }
  RawClient more(serving.port());
  CHECK(more.IsClosed());
  clients.pop_back();
  CHECK(Eventually([&] { return Exchange(serving.port(), Get("/health")).status == 200; }));
}

TEST_CASE("bursts of requests on many connections all end", "[http][abuse]") {
  EngineConfig config = testing::TestEngineConfig();
  config.scheduler.waiting_max = 10'000;
  SteppedEngine engine(config);
  HttpServing serving(engine.loop(), nullptr, FreePort());
  constexpr int kThreads = 8;
  constexpr int kEach = 60;
  std::vector<int> answered(kThreads, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        RawClient client(serving.port());
        client.Send(Completion(3, i % 2 == 0));
        if (i % 7 == 6) {
          client.Close();  // before its answer
          ++answered[static_cast<std::size_t>(t)];
        } else if (client.Read().value_or(Reply{}).status == 200) {
          ++answered[static_cast<std::size_t>(t)];
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  CHECK(answered == std::vector<int>(kThreads, kEach));
  CHECK(engine.BecomesQuiet());
  CHECK(Eventually([&] { return serving.server().connections() == 0; }));
}

}  // namespace
TEST_CASE("a stream that waits says that it lives, and then goes on or fails", "[http]") {
  const bool fails = GENERATE(false, true);
  testing::FakeEngine engine;
  testing::HttpServing serving(engine, nullptr, testing::FreePort(), {.silent_us_max = 100'000});
  testing::RawClient client(serving.port());
  REQUIRE(client.Send(Post(kCompletions, R"({"prompt": [1], "stream": true})")));
  const auto submitted = engine.Wait(0);
  REQUIRE(submitted);
  const std::optional<Reply> head = client.ReadBeginning();
  REQUIRE(head);
  CHECK(head->status == 200);
  CHECK(head->headers.at("content-type") == "text/event-stream; charset=utf-8");
  CHECK(head->headers.count("x-request-id") == 1);
  if (fails) {
    TokenDelta last = testing::LastDelta(FinishReason::kError);
    last.error = Error{ErrorCode::kInternal, "it broke"};
    submitted->sink->OnDelta(std::move(last));
  } else {
    submitted->sink->OnDelta(testing::Delta("abc", {5}));
    submitted->sink->OnDelta(testing::LastDelta(FinishReason::kStop));
  }
  const std::optional<Reply> rest = client.ReadRest(*head);
  REQUIRE(rest);
  CHECK(rest->body.rfind(": keep-alive\n\n", 0) == 0);
  CHECK((rest->body.find("it broke") != std::string::npos) == fails);
  CHECK((rest->body.find("abc") != std::string::npos) == !fails);
  CHECK((rest->body.find("[DONE]") != std::string::npos) == !fails);
}

}  // namespace dsa::abuse_test
