// The engine on its own threads; the thread sanitizer watches these.
#include "common/clock.h"
#include "server/engine/engine_loop.h"
#include "tests/engine/testing.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::MakeRequest;
using testing::RecordingSink;

constexpr int kThreads = 4;
constexpr int kRequestsPerThread = 50;

TEST_CASE("Requests from many threads each get their own tokens and one end", "[engine][threads]") {
  testing::ScriptedExecutor executor;
  const SteadyClock clock;
  const testing::LetterDecoderFactory decoders;
  EngineLoop engine(testing::SmallEngine(),
                    {.executor = executor, .clock = clock, .decoders = &decoders});
  engine.Start();
  std::vector<std::vector<std::shared_ptr<RecordingSink>>> sinks(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&engine, &own = sinks[t], t] {
      for (int i = 0; i < kRequestsPerThread; ++i) {
        const std::string id = std::to_string(t) + "-" + std::to_string(i);
        auto sink = std::make_shared<RecordingSink>();
        while (true) {
          const Status status = engine.Submit(MakeRequest(id, 1 + i % 40, 5), sink);
          if (status.ok()) {
            break;
          }
          if (status.error().code != ErrorCode::kResourceExhausted) {
            return;
          }
          std::this_thread::yield();
        }
        if (i % 5 == 1) {
          sink->Cancel();
        } else if (i % 5 == 2) {
          engine.Abort(id);
        }
        own.push_back(std::move(sink));
        engine.Load();
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  engine.Drain(60'000'000);
  for (int t = 0; t < kThreads; ++t) {
    REQUIRE(sinks[t].size() == kRequestsPerThread);
    for (int i = 0; i < kRequestsPerThread; ++i) {
      const RecordingSink& sink = *sinks[t][i];
      CAPTURE(t, i);
      CHECK(sink.ends() == 1);
      const auto ids = sink.ids();
      for (std::size_t k = 0; k < ids.size(); ++k) {
        CHECK(ids[k] == 1 + i % 40 + static_cast<int>(k));
      }
      if (i % 5 != 1 && i % 5 != 2) {
        CHECK(sink.finish() == FinishReason::kLength);
        CHECK(ids.size() == 5);
      }
    }
  }
  const EngineLoad load = engine.Load();
  CHECK(load.requests_finished == kThreads * kRequestsPerThread);
  CHECK(load.blocks_referenced == 0);
  engine.Stop();
}

TEST_CASE("A drain past its limit aborts the rest", "[engine][threads]") {
  testing::ScriptedExecutor executor;
  const SteadyClock clock;
  EngineConfig config = testing::SmallEngine();
  config.end_ids.clear();
  EngineLoop engine(config, {.executor = executor, .clock = clock, .decoders = nullptr});
  auto sink = std::make_shared<RecordingSink>();
  REQUIRE(engine.Submit(MakeRequest("a", 5, 250), sink).ok());
  engine.Start();
  engine.Drain(0);
  CHECK(sink->ends() == 1);
  engine.Stop();
  engine.Stop();
}

TEST_CASE("An engine that stops by itself ends what is live", "[engine][threads]") {
  testing::ScriptedExecutor executor;
  const SteadyClock clock;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  {
    EngineLoop engine(testing::SmallEngine(),
                      {.executor = executor, .clock = clock, .decoders = nullptr});
    engine.Start();
    for (int i = 0; i < 8; ++i) {
      sinks.push_back(std::make_shared<RecordingSink>());
      REQUIRE(engine.Submit(MakeRequest(std::to_string(i), 1, 40), sinks.back()).ok());
    }
  }
  for (const auto& sink : sinks) {
    CHECK(sink->ends() == 1);
  }
}

}  // namespace
}  // namespace dsa
