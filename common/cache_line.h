// The unit in which the host's caches move memory.
#pragma once

#include <cstddef>

namespace dsa {

inline constexpr std::size_t kCacheLineBytes = 64;

// Asks for the first cache lines at `address`, aligned to one.  A hint: nothing waits, nothing
// fails, whatever lies there.
template <std::size_t kLines>
void PrefetchLines(const void* address) {
  for (std::size_t line = 0; line < kLines; ++line) {
    __builtin_prefetch(static_cast<const char*>(address) + line * kCacheLineBytes);
  }
}

}  // namespace dsa
