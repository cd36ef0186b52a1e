// Ctrl-C in a command that writes what it has before it ends.
#pragma once

#include <atomic>

namespace dsa {

// True from the first SIGINT on; a second one ends the process at once.  Takes SIGINT over with the
// first call; main thread.
const std::atomic<bool>& InterruptFlag();

// What a process that SIGINT ended exits with.
inline constexpr int kInterruptedExitCode = 130;

}  // namespace dsa
