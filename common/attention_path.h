// Decided by the scheduler, obeyed by the model: the one word they share about attention.
#pragma once

#include <cstdint>

namespace dsa {

// How a row attends.  Depends on its absolute position and the configuration only.
enum class AttentionPath : std::uint8_t {
  kDense,   // at most index_topk visible keys, or a model or configuration without selection
  kMasked,  // expanded keys and values under the selection's mask: short prefill
  kSparse,  // absorbed form over the selected keys
};

}  // namespace dsa
