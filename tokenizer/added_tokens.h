// Finds added tokens in text: literal, leftmost, the longest of several.  Immutable after the last
// Insert; thread-safe.
#pragma once

#include "common/ids.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace dsa {

class AddedTokens final {
 public:
  struct Match {
    std::size_t begin;
    std::size_t end;
    TokenId id;
  };

  AddedTokens();

  // `content` is not empty.
  void Insert(std::string_view content, TokenId id);
  bool empty() const { return nodes_.size() == 1; }

  // The leftmost match within bytes [begin, end) of `text`; the longest that begins there.
  std::optional<Match> Find(std::string_view text, std::size_t begin, std::size_t end) const;

 private:
  struct Node {
    std::vector<std::pair<unsigned char, std::uint32_t>> children;
    std::int32_t id = -1;  // of the token that ends here
  };
  std::uint32_t Child(std::uint32_t node, unsigned char byte) const;  // 0: none

  std::vector<Node> nodes_;  // a trie; the root first
  std::array<bool, 256> begins_{};
};

}  // namespace dsa
