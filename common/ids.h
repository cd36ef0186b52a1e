// Identifiers as distinct types, so that a block is never passed where a sequence is meant.
#pragma once

#include <cstdint>

namespace dsa {

enum class TokenId : std::int32_t {};     // a row of the embedding; >= 0
enum class BlockId : std::int32_t {};     // a block of the paged caches, both regions, all layers
enum class SequenceId : std::int64_t {};  // a sequence known to the scheduler; never reused
enum class RequestId : std::int64_t {};   // a request known to the engine; never reused

constexpr std::int32_t Value(TokenId id) {
  return static_cast<std::int32_t>(id);
}
constexpr std::int32_t Value(BlockId id) {
  return static_cast<std::int32_t>(id);
}
constexpr std::int64_t Value(SequenceId id) {
  return static_cast<std::int64_t>(id);
}
constexpr std::int64_t Value(RequestId id) {
  return static_cast<std::int64_t>(id);
}

}  // namespace dsa
