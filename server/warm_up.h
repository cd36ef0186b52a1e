// One real request before the first client: readiness means that the model has computed.
#pragma once

#include "common/clock.h"
#include "common/status.h"
#include "server/engine/engine.h"

#include <cstdint>

namespace dsa {

struct WarmUpOptions {
  std::int64_t prompt_tokens;  // > 0; past index_topk, so that selection has run
  std::int64_t vocabulary;
};

// Prefills and decodes through the engine, whose threads run.  INTERNAL where the model computes
// values that are not finite.
Status RunWarmUp(Engine& engine, const Clock& clock, const WarmUpOptions& options);

}  // namespace dsa
