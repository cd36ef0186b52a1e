// Decided by the scheduler, obeyed by the model: the one word they share about attention.
#pragma once

#include <cstdint>

namespace dsa {

// How a row attends.  Decided once for every position of a sequence, when the sequence first runs
// (Scheduler::PathAt), and never by the chunk that computes it.
enum class AttentionPath : std::uint8_t {
  kDense,           // absorbed form over every visible key
  kMaskedAll,       // expanded keys and values, every visible key
  kMaskedSelected,  // expanded keys and values under the selection's mask
  kSparse,          // absorbed form over the selected keys
};
inline constexpr int kAttentionPaths = 4;

constexpr bool IsMasked(AttentionPath path) {
  return path == AttentionPath::kMaskedAll || path == AttentionPath::kMaskedSelected;
}
constexpr bool Selects(AttentionPath path) {
  return path == AttentionPath::kMaskedSelected || path == AttentionPath::kSparse;
}

}  // namespace dsa
