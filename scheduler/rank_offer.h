// What a data rank offers a request that waits for one.
//
// A request is bound to a rank when it can be admitted there: to the one with the smallest
// estimated time to its first token, which is what the rank computes until then, in tokens; among
// equals to the one with the fewest sequences, then to the first.  It stays there, preempted or
// not, since its keys are that rank's.  Several answers to one prompt are bound together, to the
// rank of the first, where the others wait until the prompt is computed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace dsa {

struct RankOffer {
  // A place is free, and blocks beside those that whoever waits at the rank needs to start.
  bool can_start = false;
  // The request's tokens whose keys the rank's prefix cache has not, and those that the rank's own
  // sequences have still to catch up with.
  std::int64_t tokens_to_first = 0;
  std::int64_t sequences = 0;  // at the rank, running and waiting
};

// None where none can start it.
std::optional<std::size_t> ChooseRank(std::span<const RankOffer> ranks);

}  // namespace dsa
