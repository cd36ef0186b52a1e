// Rows that the device could not compute: whose request ends, and with which words.
#include "server/engine/engine_loop.h"
#include "tests/engine/testing.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::MakeRequest;
using testing::RecordingSink;

}  // namespace

TEST_CASE("A fault of a sample ends its request alone, and says what it is", "[engine]") {
  using Fault = std::pair<std::int32_t, std::string>;
  const auto [fault, message] =
      GENERATE(Fault(kRowFaultLogits, "non-finite logits"),
               Fault(kRowFaultNoCandidate, "no token may be sampled"),
               Fault(kRowFaultLogits | kRowFaultNoCandidate, "no token may be sampled"));
  const std::size_t faulty = GENERATE(0U, 1U, 2U);
  testing::ScriptedExecutor executor;
  testing::ManualClock clock;
  testing::LetterDecoderFactory decoders;
  EngineLoop engine(testing::SmallEngine(),
                    {.executor = executor, .clock = clock, .decoders = &decoders});
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const char* const id : {"a", "b", "c"}) {
    sinks.push_back(std::make_shared<RecordingSink>());
    REQUIRE(
        engine.Submit(MakeRequest(id, 4 + static_cast<std::int32_t>(sinks.size()), 5), sinks.back())
            .ok());
  }
  engine.RunOnce();  // all prompts: a token each
  executor.faulty_sample = static_cast<std::int64_t>(faulty);
  executor.sample_fault = fault;
  engine.RunOnce();
  executor.faulty_sample = -1;
  for (int step = 0; step < 4; ++step) {
    engine.RunOnce();
  }
  engine.PumpOnce();
  for (std::size_t i = 0; i < sinks.size(); ++i) {
    CAPTURE(faulty, message, i);
    CHECK(sinks[i]->ends() == 1);
    CHECK(sinks[i]->ids().size() == (i == faulty ? 1 : 5));
    CHECK(sinks[i]->finish() == (i == faulty ? FinishReason::kError : FinishReason::kLength));
    if (i == faulty) {
      CHECK(sinks[i]->error()->code == ErrorCode::kInternal);
      CHECK(sinks[i]->error()->message == message);
    }
  }
}

}  // namespace dsa
