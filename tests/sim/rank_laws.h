// What data ranks owe each other and the requests that wait for one (I-14).
//
//   choice    a request is bound to a rank that can start it, and of those to the one with the
//             fewest tokens to compute before its first one; among equals to the one with the
//             fewest sequences.  Prefixes count where they are cached, and nowhere else.
//   siblings  answers to one prompt are on one rank as long as they live; who follows one there may
//             wait there, as long as the rank has a slot
//   order     who is bound comes before everybody who is not
//   stay      a request runs on one rank, however often it is preempted
//   idle      no rank has nothing to do, nor room beside all that it has started, while the first
//             that waits could start there
//   together  every rank runs every step, also with no row of its own; all in one recorded shape or
//             none, and with the rows of the largest in the exchange; what is padding is said
#pragma once

#include "server/engine/engine_core.h"
#include "server/engine/engine_loop.h"
#include "tests/sim/fake_model.h"
#include "tests/sim/sim_config.h"

#include <cstdint>
#include <optional>
#include <set>
#include <vector>

namespace dsa::sim {

class RankLaws final : public BindingObserver {
 public:
  explicit RankLaws(const SimConfig& config) : config_(config) {}

  // Before the first step.
  void Observe(const EngineLoop& engine) { engine_ = &engine; }

  // Before a step of the engine.
  void BeginStep();
  void OnBind(const Sequence& sequence, std::size_t rank) override;
  // When every rank has its plan, and nobody has ended since.
  void CheckIdle() const;
  // While the step is in flight.
  void CheckTogether(const FakeExecutors& executors) const;

  std::int64_t bound_elsewhere() const {
    return bound_elsewhere_;
  }  // to another rank than the first

 private:
  CachedPrefix CachedOf(const Sequence& sequence, std::size_t rank) const;
  std::int64_t UncachedTokens(const Sequence& sequence, std::size_t rank) const;
  RankOffer OfferOf(const Sequence& sequence, std::size_t rank) const;
  bool HasBlocks(const Sequence& sequence, std::size_t rank) const;
  std::int64_t BlocksToStart(const Sequence& sequence) const;
  std::optional<std::size_t> RankOfSiblings(const Sequence& sequence) const;
  std::int64_t AwaitedTokens(const Sequence& sequence, std::size_t rank) const;
  void CheckChoice(const Sequence& sequence, std::size_t chosen) const;
  bool StartedOrPreempted(std::size_t rank) const;

  const SimConfig& config_;
  const EngineLoop* engine_ = nullptr;
  std::vector<std::set<std::int64_t>> running_before_;  // request ids, by rank
  std::vector<std::int64_t> preemptions_before_;        // by rank
  std::int64_t bound_elsewhere_ = 0;
};

}  // namespace dsa::sim
