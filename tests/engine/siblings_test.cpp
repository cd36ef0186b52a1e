// Requests for one prompt that were submitted together.
#include "server/engine/engine_loop.h"
#include "tests/engine/testing.h"

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::MakeRequest;
using testing::RecordingSink;

struct SiblingRig {
  explicit SiblingRig(const EngineConfig& config)
      : engine(config, {.executor = executor, .clock = clock, .decoders = nullptr}) {}

  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      engine.RunOnce();
    }
    engine.PumpOnce();
  }

  testing::ScriptedExecutor executor;
  testing::ManualClock clock;
  EngineLoop engine;
};

TEST_CASE("Siblings compute their prompt once and end each by itself", "[engine]") {
  SiblingRig rig(testing::SmallEngine());  // blocks of 8 tokens
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 3; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
  }
  const std::vector<std::shared_ptr<TokenSink>> all(sinks.begin(), sinks.end());
  Request request = MakeRequest("one", 30, 5);
  request.id = rig.engine.NextRequestId();
  REQUIRE(rig.engine.SubmitSiblings(request, all).ok());
  CHECK(rig.engine.Load().waiting == 3);
  rig.Run(1);
  CHECK(rig.engine.Load().tokens_computed == 30);  // the first alone
  sinks[1]->Cancel();
  rig.Run(1);
  CHECK(sinks[1]->finish() == FinishReason::kCancelled);
  CHECK(rig.engine.Load().tokens_computed == 30 + 1 + 6);
  CHECK(sinks[2]->usage().cache_hit_tokens == 24);
  rig.Run(3);
  CHECK(sinks[0]->finish() == FinishReason::kLength);
  CHECK(sinks[0]->usage().cache_hit_tokens == 0);
  // Their id is live until the last has ended.
  CHECK_FALSE(rig.engine.Submit(MakeRequest("one", 5, 2), std::make_shared<RecordingSink>()).ok());
  rig.Run(4);
  CHECK(sinks[2]->finish() == FinishReason::kLength);
  CHECK(sinks[2]->ids() == sinks[0]->ids());
  CHECK(rig.engine.Submit(MakeRequest("one", 5, 9), std::make_shared<RecordingSink>()).ok());
  // All or none: 16 may wait beside the 7 that could start.
  CHECK(rig.engine.Load().waiting == 1);
  const std::vector<std::shared_ptr<TokenSink>> many(24, sinks[0]);
  request.external_id = "many";
  CHECK(rig.engine.SubmitSiblings(request, many).error().code == ErrorCode::kResourceExhausted);
  CHECK(rig.engine.Load().waiting == 1);
}

TEST_CASE("An abort ends all siblings", "[engine]") {
  SiblingRig rig(testing::SmallEngine());
  std::vector<std::shared_ptr<TokenSink>> sinks;
  for (int i = 0; i < 4; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
  }
  REQUIRE(rig.engine.SubmitSiblings(MakeRequest("all", 12, 50), sinks).ok());
  rig.Run(2);
  CHECK(rig.engine.Abort("all"));
  rig.Run(1);
  for (const std::shared_ptr<TokenSink>& sink : sinks) {
    CHECK(static_cast<RecordingSink&>(*sink).finish() == FinishReason::kAborted);
  }
  CHECK_FALSE(rig.engine.Abort("all"));
}

}  // namespace
}  // namespace dsa
