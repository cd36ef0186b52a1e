// The real engine in this process, with an executor whose steps end when the test says, and what
// the server of any protocol over it needs: for everything about calls, time and load that needs no
// model.
//
// Token i of a reply is (prompt length + i) % 50, its text one letter.  Nothing ends a reply but
// max_tokens.
#pragma once

#include "common/clock.h"
#include "server/api/service_context.h"
#include "server/engine/engine_loop.h"
#include "tests/engine/step_control.h"
#include "tests/engine/testing.h"

#include <chrono>
#include <functional>
#include <memory>

namespace dsa::testing {

// 16 sequences run, 64 wait; 4096 tokens of context, room for 16 such sequences.
EngineConfig TestEngineConfig();

class SteppedEngine final {
 public:
  explicit SteppedEngine(const EngineConfig& config = TestEngineConfig());
  // A clock outlives the engine; null: the machine's.
  SteppedEngine(const EngineConfig& config, std::unique_ptr<TextDecoderFactory> decoders,
                const Clock* clock = nullptr);
  ~SteppedEngine() { Stop(); }
  SteppedEngine(const SteppedEngine&) = delete;
  SteppedEngine& operator=(const SteppedEngine&) = delete;

  EngineLoop& loop() { return *loop_; }
  StepControl& steps() { return steps_; }
  // Waits until nothing is live and no block is referenced; false after 20 s.
  bool BecomesQuiet() const;
  // Lets every step end, aborts what is live.
  void Stop();

 private:
  const SteadyClock clock_;
  StepControl steps_;
  ScriptedExecutor executor_;
  std::unique_ptr<TextDecoderFactory> decoders_;
  std::unique_ptr<EngineLoop> loop_;
};

// What a server over `engine` serves: the model "m", of the configuration's context and vocabulary,
// which chats where there is a tokenizer.
std::unique_ptr<ServiceContext> MakeTestContext(Engine& engine, const Clock& clock,
                                                const Tokenizer* tokenizer,
                                                const SlowClientLimits& slow_client,
                                                const EngineConfig& config = TestEngineConfig());

// Waits until `condition` holds, asking every millisecond; false after 20 s.
bool Eventually(const std::function<bool()>& condition);

// Lets time pass in which something must not happen.
void Pause(std::chrono::microseconds duration);

}  // namespace dsa::testing
