// The engine as those see it who ask it for tokens: what every method promises to any thread.
// Deltas come through the stream pump, a thread that calls TokenSink::OnDelta, so that a slow
// client never holds up a step.  EngineLoop (engine_loop.h) implements it, EngineCore
// (engine_core.h) is what it does on its own thread.
#pragma once

#include "common/clock.h"
#include "common/status.h"
#include "scheduler/request.h"
#include "server/engine/token_sink.h"

#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace dsa {

class Tokenizer;

// Of a data rank.
struct RankLoad {
  std::int64_t waiting = 0;  // bound to it: preempted, or about to start
  std::int64_t running = 0;
  std::int32_t blocks_total = 0;
  std::int32_t blocks_referenced = 0;
  std::int32_t blocks_cached = 0;
  std::int64_t rows = 0;          // computed so far
  std::int64_t padding_rows = 0;  // likewise, for nobody
  // What the last step took, without waiting for other data ranks where that can be told apart.
  std::int64_t last_step_us = 0;
  // Of the routed experts on its devices, so far and by rows of all ranks: ExpertLoad::Hits.
  std::int64_t expert_pairs = 0;
  double expert_pairs_max_over_mean = 0.0;
};

// A snapshot for AdminService, health and tests.  Of all data ranks together.
struct EngineLoad {
  std::int64_t waiting = 0;
  std::int64_t running = 0;
  std::int32_t blocks_total = 0;
  std::int32_t blocks_referenced = 0;
  std::int32_t blocks_cached = 0;
  std::int64_t steps = 0;
  std::int64_t tokens_computed = 0;
  std::int64_t last_step_us = 0;  // duration of the last step that computed something
  std::int64_t requests_finished = 0;
  BusyTime busy{};  // of all steps so far
  bool draining = false;
  std::vector<RankLoad> ranks{};  // one for each data rank
};

// Requests for one prompt, which differ in their seeds alone: that of sinks[i] has `request`'s
// seed + i.  The first computes the prompt.
struct Siblings {
  Request request;
  std::vector<std::shared_ptr<TokenSink>> sinks;  // at least one
};

inline Error NoMemoryForRequest() {
  return {ErrorCode::kResourceExhausted, "not enough memory for this request"};
}

// The part of the engine that the API layer uses.  (engine/engine_loop.h holds the rest.)
class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  // Checks requests against the model's and the cache's limits and queues them, all or none.  They
  // have one external id, which is live until the last of them has ended, and ids of their own
  // (Request::id).  Errors: INVALID_ARGUMENT (ids, lengths, can never fit: need and have),
  // RESOURCE_EXHAUSTED (queue full), ALREADY_EXISTS (the external id is live), UNAVAILABLE
  // (draining), DEADLINE_EXCEEDED (already past).  Hashes the prompts on the calling thread.
  virtual Status SubmitTogether(std::vector<Siblings> prompts) = 0;

  // The same for one prompt,
  Status SubmitSiblings(Request request, std::span<const std::shared_ptr<TokenSink>> sinks) {
    std::vector<Siblings> prompts;
    try {
      prompts.resize(1);
      prompts.front().sinks.assign(sinks.begin(), sinks.end());
    } catch (const std::bad_alloc&) {
      return NoMemoryForRequest();
    }
    prompts.front().request = std::move(request);
    return SubmitTogether(std::move(prompts));
  }
  // and for one answer to it.
  Status Submit(Request request, std::shared_ptr<TokenSink> sink) {
    return SubmitSiblings(std::move(request), {&sink, 1});
  }

  // A fresh id for Request::id.
  virtual RequestId NextRequestId() = 0;

  // Ends live requests by their external id with FinishReason::kAborted; false where none is live.
  virtual bool Abort(const std::string& external_id) = 0;

  virtual EngineLoad Load() const = 0;

  // Refuses new requests from now on; running ones go on.  Returns when none is live or `limit_us`
  // has passed, after which the rest is aborted.
  virtual void Drain(std::int64_t limit_us) = 0;
};

}  // namespace dsa
