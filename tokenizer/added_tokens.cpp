#include "tokenizer/added_tokens.h"

#include "common/check.h"

namespace dsa {

AddedTokens::AddedTokens() : nodes_(1) {}

std::uint32_t AddedTokens::Child(std::uint32_t node, unsigned char byte) const {
  for (const auto& [label, child] : nodes_[node].children) {
    if (label == byte) {
      return child;
    }
  }
  return 0;
}

void AddedTokens::Insert(std::string_view content, TokenId id) {
  DSA_CHECK(!content.empty(), "AddedTokens: empty content of id {}", Value(id));
  begins_[static_cast<unsigned char>(content.front())] = true;
  std::uint32_t node = 0;
  for (const char value : content) {
    const auto byte = static_cast<unsigned char>(value);
    std::uint32_t child = Child(node, byte);
    if (child == 0) {
      child = static_cast<std::uint32_t>(nodes_.size());
      nodes_[node].children.emplace_back(byte, child);
      nodes_.emplace_back();
    }
    node = child;
  }
  nodes_[node].id = Value(id);
}

std::optional<AddedTokens::Match> AddedTokens::Find(std::string_view text, std::size_t begin,
                                                    std::size_t end) const {
  for (std::size_t start = begin; start < end; ++start) {
    if (!begins_[static_cast<unsigned char>(text[start])]) {
      continue;
    }
    std::optional<Match> longest;
    std::uint32_t node = 0;
    for (std::size_t i = start; i < end; ++i) {
      node = Child(node, static_cast<unsigned char>(text[i]));
      if (node == 0) {
        break;
      }
      if (nodes_[node].id >= 0) {
        longest = {.begin = start, .end = i + 1, .id = TokenId{nodes_[node].id}};
      }
    }
    if (longest.has_value()) {
      return longest;
    }
  }
  return std::nullopt;
}

}  // namespace dsa
