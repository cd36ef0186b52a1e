// Runs the real engine loop, scheduler, cache, batch builder and stop logic in a world drawn from a
// seed, in virtual time and on one thread, and checks every law after every step.
//
//   I-1   references of block tables equal the pool's counts; every block is in exactly one place
//   I-2   no block is written that is shared or published
//   I-3   every row is written where its sequence's block table says, for a sequence that runs, in
//         a block of the generation that the plan recorded; still so when the write lands, after
//         whatever was cancelled, expired or arrived while the step was in flight
//   I-4   what a sequence reads back is what its own tokens give (the token differs otherwise)
//   I-5   every accepted request ends exactly once, and nothing comes after its end
//   I-6   tokens, text and finish reason are those of the request alone
//   I-7   usage counts what was delivered; hits are what was not computed when it first ran
//   I-8   budget, running sequences and positions of a batch
//   I-9   nobody waits longer than a bound in steps (wait_laws.h), at most preemptions_max
//         preemptions, the oldest advances
//   I-10  while anything is live, every step computes something
//   I-11  a position's attention path follows from its request and what was found of it when it
//         first ran, however often and in whatever chunks it is computed
//   I-12  steps that share a recording have one shape; nobody reads the block of padding
//   I-13  the time of steps goes where it should (time_laws.h), and steps take what the cost model
//         says
//   I-14  data ranks: who is bound where, and that all run every step together (rank_laws.h)
//   I-15  siblings are requests of their own, that of index i with seed + i, and none starts while
//         one before it still computes what they can share
//   and: tenants never share a block; what is cancelled or expired leaves within one step; draining
//   only shrinks the live set; queue refusals are exact; at the end no block is referenced.
#pragma once

#include "common/clock.h"
#include "server/engine/engine_loop.h"
#include "tests/sim/fake_model.h"
#include "tests/sim/rank_laws.h"
#include "tests/sim/sim_config.h"

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace dsa::sim {

// What happened, to show that the worlds are not empty.
struct SimStats {
  std::int64_t steps = 0;
  std::int64_t tokens = 0;
  std::int64_t requests = 0;
  std::int64_t refused = 0;
  std::int64_t hit_tokens = 0;
  std::int64_t preemptions = 0;
  std::int64_t cancelled = 0;
  std::int64_t expired = 0;
  std::int64_t failed = 0;
  std::int64_t stopped = 0;
  std::int64_t bound_elsewhere = 0;       // to another data rank than the first
  std::int64_t siblings = 0;              // accepted, the first ones not counted
  std::int64_t scored = 0;                // prompts, with no token behind them
  std::int64_t longest_wait_percent = 0;  // of its bound; among waits of some length
};

class VirtualClock final : public Clock {
 public:
  MonotonicUs NowUs() const override { return now_us; }
  MonotonicUs now_us = 1;
};

// What a client saw of its request.
class Client final : public TokenSink {
 public:
  void OnDelta(TokenDelta&& delta) override;

  Request request;  // as submitted
  std::int64_t tenant = 0;
  std::vector<GeneratedToken> prompt;
  std::vector<GeneratedToken> tokens;
  std::string text;
  std::optional<FinishReason> finish;
  std::optional<Error> error;
  Usage usage;
  bool aborted = false;
  bool must_end = false;  // cancelled, aborted or expired before the step that runs now
};

class Simulator final {
 public:
  explicit Simulator(const SimConfig& config);

  // The whole life of the world.
  void Run();
  const SimStats& stats() const { return stats_; }

 private:
  // Where a running or waiting sequence stood after the last step.
  struct Standing {
    SequenceState state;
    std::int64_t computed;
    std::int64_t tokens;
  };

  void Arrive();
  Request DrawRequest();
  void DrawPenalties(SamplingParams& sampling);
  bool IsFull(std::int64_t requests) const;
  void Submit(const Request& request, std::int64_t answers);
  void CheckRefusal(const Error& error, const Client& client, std::int64_t answers, bool duplicate);
  void DisturbLive();
  void LiveInFlight();
  std::int64_t StepUs();
  bool Step();
  void MarkMustEnd();
  void CheckAfterStep(EngineProgress progress);
  void CheckRank(std::size_t rank, EngineProgress progress);
  void CheckMayLive(const Sequence& sequence) const;
  void CheckOldest(std::size_t rank, EngineProgress progress);
  std::int64_t WaitingIn() const;
  std::int64_t RunningIn() const;
  std::optional<std::int64_t> FirstComputed(const Request& request) const;
  void CheckEnded(const Client& client);
  void CheckUsage(const Client& client);
  void CheckOutput(const Client& client);
  void CheckPromptLogprobs(const Client& client, const Expected& expected);
  void CheckQuiet();
  std::int64_t LiveClients() const;

  const SimConfig config_;
  Random random_;
  Random extras_;  // apart, so that worlds with and without them are alike otherwise
  VirtualClock clock_;
  FakeDecoderFactory decoders_;
  RankLaws rank_laws_;
  FakeExecutors executors_;
  EngineLoop engine_;
  SimStats stats_;

  std::vector<std::shared_ptr<Client>> live_;
  std::vector<std::vector<TokenId>> families_;
  std::map<std::int64_t, Standing> standings_;  // by request id
  std::int64_t requests_made_ = 0;
  std::vector<std::int64_t> oldest_;           // request id, by data rank
  std::vector<std::int64_t> idle_for_oldest_;  // by data rank
  std::int64_t arrived_in_flight_ = 0;         // accepted during the step that runs now
  bool drain_in_flight_ = false;               // to begin during the next step
  bool abort_in_flight_ = false;
  bool draining_ = false;
};

// Runs a seed; the current seed and step are what Fail reports.
SimStats RunSeed(std::uint64_t seed);

}  // namespace dsa::sim
