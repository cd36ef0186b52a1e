// The implementation of Engine: one thread decides, one delivers.
//
//   Submit --inbox--> RunOnce: admit, sweep, plan, build, execute, commit, deliver
//                                                                      --outbox--> PumpOnce
//
// Serving calls Start, which runs RunOnce and PumpOnce on a thread each.  Tests and the simulator
// call the two themselves instead, with a clock of their own.
#pragma once

#include "common/clock.h"
#include "server/engine/engine.h"
#include "server/engine/engine_config.h"
#include "server/engine/engine_progress.h"
#include "server/engine/executor.h"
#include "server/engine/text_decoder.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace dsa {

class BindingObserver;
class Scheduler;
class StepCostModel;
class BlockPool;
class PrefixCache;
struct LiveRequest;

// What one of the two threads says of itself, for a watchdog.
struct LoopActivity {
  std::int64_t done;         // changes with all that it gets done
  bool waiting;              // there is work for it, or it is at it
  std::int64_t estimate_us;  // what the step at hand should take; 0: unknown
};

class EngineLoop final : public Engine {
 public:
  struct Dependencies {
    StepExecutor& executor;
    const Clock& clock;
    const TextDecoderFactory* decoders;  // null: text stays empty
    BindingObserver* observer = nullptr;
  };
  // `config` is valid; the dependencies outlive the engine.
  EngineLoop(const EngineConfig& config, const Dependencies& dependencies);
  ~EngineLoop() override;  // stops; what is live ends as kAborted

  Status SubmitTogether(std::vector<Siblings> prompts) override;
  RequestId NextRequestId() override;
  bool Abort(const std::string& external_id) override;
  EngineLoad Load() const override;
  void Drain(std::int64_t limit_us) override;  // only between Start and Stop

  // Starts and joins the two threads.  Stop ends what is live as kAborted and delivers it.
  void Start();
  void Stop();

  EngineProgress RunOnce();  // engine thread
  std::int64_t PumpOnce();   // stream pump thread; the number of deltas delivered

  // Ends every request with this error and joins the pump: what a device that has failed leaves to
  // do.  Engine thread, in a step that will not end, or that computes nothing any more; new
  // requests are refused from then on.  `message` outlives the loop.
  void FailAll(ErrorCode code, const char* message);

  // Any thread; they are meant for between Start and Stop.
  LoopActivity EngineActivity() const;
  LoopActivity PumpActivity() const;

  // The parts of Drain that do not wait.
  void BeginDrain();  // refuse new requests
  void AbortAll();    // end what is live in the next RunOnce

  // For the simulator's invariants and tests; engine thread.  Of a data rank.
  const Scheduler& scheduler(std::size_t rank = 0) const;
  const BlockPool& pool(std::size_t rank = 0) const;
  const PrefixCache& prefix_cache(std::size_t rank = 0) const;
  const StepCostModel& costs() const;
  std::span<const std::unique_ptr<LiveRequest>> unbound() const;

 private:
  struct State;

  void RunEngine();
  void RunPump();
  Status CheckSubmission(const Request& request) const;
  std::unique_ptr<LiveRequest> MakeLive(Request request, std::shared_ptr<TokenSink> sink) const;
  void MakeSiblings(Siblings&& prompt, std::vector<std::unique_ptr<LiveRequest>>& live);

  std::unique_ptr<State> state_;
};

}  // namespace dsa
