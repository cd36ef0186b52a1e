// Memory that is read once per token, weights and keys, comes from far away, and the processor asks
// for it too late by itself: rows are short and lie in several places at a time.
#pragma once

#include <cstdint>

namespace dsa::cpu {

inline constexpr std::int64_t kLineBytes = 64;

// Asks for the cache line of `address`, which need not be readable.  GCC takes a function that does
// nothing but __builtin_prefetch for one without effects, and leaves out its calls.
inline void Prefetch(const void* address) {
  asm volatile("prefetcht0 %0" : : "m"(*static_cast<const char*>(address)));
}

// Asks for the lines that `bytes` bytes from `address` on lie in.
inline void PrefetchBytes(const void* address, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += kLineBytes) {
    Prefetch(static_cast<const char*>(address) + i);
  }
}

}  // namespace dsa::cpu
