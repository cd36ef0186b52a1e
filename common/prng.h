// Random numbers without state: a keyed hash of a counter, so that a value depends on (seed,
// counter) alone and never on the batch, the thread or a restart.  Steele, Lea & Flood 2014
// (SplitMix64's finaliser), applied twice so that nearby keys do not correlate.
#pragma once

#include <cstdint>

namespace dsa {

constexpr std::uint64_t SplitMix64(std::uint64_t value) {
  value += 0x9E3779B97F4A7C15ULL;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31);
}

// 64 uniform bits for (seed, counter).
constexpr std::uint64_t CounterBits(std::uint64_t seed, std::uint64_t counter) {
  return SplitMix64(SplitMix64(seed) ^ SplitMix64(counter * 0xD1342543DE82EF95ULL + 1));
}

// Uniform in [0, 1), a multiple of 2^-24 and so exact in float.
constexpr float CounterUniform(std::uint64_t seed, std::uint64_t counter) {
  return static_cast<float>(CounterBits(seed, counter) >> 40) * 0x1p-24F;
}

}  // namespace dsa
