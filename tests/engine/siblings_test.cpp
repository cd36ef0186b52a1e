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

TEST_CASE("Several prompts are taken together or not at all", "[engine]") {
  SiblingRig rig(testing::SmallEngine());  // 8 run, 16 wait
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  const auto prompt = [&](std::int32_t tokens, int answers, std::int64_t max_tokens) {
    Siblings siblings;
    siblings.request = MakeRequest("list", tokens, max_tokens);
    siblings.request.id = rig.engine.NextRequestId();
    siblings.request.sampling.seed = 70;
    for (int i = 0; i < answers; ++i) {
      sinks.push_back(std::make_shared<RecordingSink>());
      siblings.sinks.push_back(sinks.back());
    }
    return siblings;
  };
  const auto submit = [&](const std::vector<Siblings>& prompts) {
    return rig.engine.SubmitTogether(prompts);
  };
  // One that cannot be keeps the others out.
  CHECK(submit({prompt(5, 1, 3), prompt(250, 1, 50)}).error().code == ErrorCode::kInvalidArgument);
  CHECK(submit({prompt(5, 20, 3), prompt(6, 5, 3)}).error().message ==
        "25 requests together, at most 24: so many the queue takes");
  CHECK(rig.engine.Load().waiting == 0);
  sinks.clear();
  REQUIRE(submit({prompt(17, 2, 3), prompt(9, 1, 2), prompt(20, 1, 4)}).ok());
  CHECK(rig.engine.Load().waiting == 4);
  rig.Run(1);
  CHECK(rig.engine.Load().tokens_computed == 17 + 9 + 20);  // a second answer waits for its first
  CHECK_FALSE(rig.engine.Submit(MakeRequest("list", 5, 2), std::make_shared<RecordingSink>()).ok());
  rig.Run(6);
  for (std::size_t i = 0; i < sinks.size(); ++i) {
    CAPTURE(i);
    CHECK(sinks[i]->finish() == FinishReason::kLength);
    CHECK(sinks[i]->ids().size() == std::vector<std::size_t>{3, 3, 2, 4}[i]);
    CHECK(sinks[i]->usage().cache_hit_tokens == (i == 1 ? 16 : 0));
  }
  CHECK(rig.engine.Submit(MakeRequest("list", 5, 9), std::make_shared<RecordingSink>()).ok());
  const Status full = submit({prompt(5, 12, 3), prompt(6, 12, 3)});
  CHECK(full.error().code == ErrorCode::kResourceExhausted);
  CHECK(full.error().message ==
        "queue full: no room for 24 together, 1 requests are waiting, limit 16 beside those that "
        "start");
  CHECK(rig.engine.Load().waiting == 1);
  CHECK(rig.engine.Abort("list"));
  rig.Run(1);
  // An abort ends them all.
  sinks.clear();
  REQUIRE(submit({prompt(5, 2, 30), prompt(6, 1, 30)}).ok());
  rig.Run(2);
  CHECK(rig.engine.Abort("list"));
  rig.Run(2);
  for (const std::shared_ptr<RecordingSink>& sink : sinks) {
    CHECK(sink->finish() == FinishReason::kAborted);
  }
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
