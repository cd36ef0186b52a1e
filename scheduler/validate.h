// Checks what a client asked for.  Every error is INVALID_ARGUMENT and names the field, its value
// and what is allowed.  Thread-safe.
#pragma once

#include "common/status.h"
#include "scheduler/request.h"

#include <cstdint>

namespace dsa {

inline constexpr std::int64_t kStopStringsMax = 16;
inline constexpr std::int64_t kStopStringBytesMax = 256;
inline constexpr std::int64_t kStopStringBytesTotalMax = 2048;
inline constexpr std::int64_t kStopIdsMax = 64;
inline constexpr std::int32_t kTopLogprobsLimit = 20;
inline constexpr float kPenaltyMax = 2.0F;             // frequency and presence, and below: -2
inline constexpr float kRepetitionPenaltyMax = 10.0F;  // above 0
inline constexpr std::int64_t kLogitBiasesMax = 1024;
inline constexpr float kLogitBiasMax = 100.0F;  // and below: -100
inline constexpr std::int64_t kExternalIdBytesMax = 128;

// `vocabulary` is one past the last id that can be sampled.
Status Validate(const SamplingParams& sampling, std::int64_t vocabulary);
Status Validate(const StopConditions& stop, std::int64_t vocabulary);

// The two above, the external id (at most 128 of A-Z a-z 0-9 . _ -), and a prompt that is not empty
// and whose ids lie in [0, vocabulary).
Status Validate(const Request& request, std::int64_t vocabulary);

}  // namespace dsa
