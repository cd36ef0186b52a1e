// What the engine thread has done and may wait for: shared by the loop and its core.
#pragma once

#include <cstdint>

namespace dsa {

// What one call of RunOnce did.
enum class EngineProgress : std::uint8_t {
  kStepped,  // a step was computed
  kIdle,     // nothing is live; requests that ended may have been delivered
  kBlocked,  // the outbox is full: the pump must deliver first
};

}  // namespace dsa
