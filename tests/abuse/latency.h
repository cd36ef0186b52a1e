// What the way through the relay costs, and whether silence is borne.
#pragma once

#include <chrono>

namespace dsa::testing {

// Prints the time from the first byte of an answer's frame on gRPC's side to the client's, and of
// whole calls.  An exit code.
int PrintLatency();

// A stream whose one step takes so long.  An exit code.
int StaySilent(std::chrono::seconds duration);

}  // namespace dsa::testing
