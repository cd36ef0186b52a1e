// Byte-pair merging: of all adjacent pairs that have a merge, the one of lowest rank is merged
// first, the leftmost of equals, until none is left.  Sennrich et al. 2016.  Immutable after
// construction; thread-safe with one BpeScratch a thread.
#pragma once

#include "common/ids.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

struct BpeMerge {
  std::int32_t left;  // token ids
  std::int32_t right;
  std::int32_t merged;
};

// The working memory of long pieces, bounded by the window.  One per call of Encode.
class BpeScratch final {
 public:
  // A long piece may be left unfinished once there are more ids than this.
  explicit BpeScratch(std::size_t ids_max = std::numeric_limits<std::size_t>::max())
      : ids_max_(ids_max) {}

 private:
  friend class Bpe;

  static constexpr std::uint32_t kNone = 0xffffffffU;

  struct Node {
    std::int32_t id;  // -1: merged into its predecessor
    std::uint32_t previous;
    std::uint32_t next;
  };
  struct Waiting {
    std::uint32_t node;
    std::uint32_t next;
  };

  const std::size_t ids_max_;
  std::vector<Node> nodes_;
  std::vector<std::uint32_t> heads_;  // per rank, the last pair that waits for it
  std::vector<Waiting> waiting_;
  std::uint32_t free_ = kNone;                       // the first unused entry of waiting_
  std::array<std::vector<std::uint64_t>, 4> ranks_;  // bits: ranks that wait, words of bits, ...
  std::vector<std::uint32_t> batch_;
  std::vector<TokenId> window_ids_;
  std::vector<TokenId> junction_ids_;

  void Start(std::size_t ranks);
  void Wait(std::uint32_t node, std::int32_t rank);
  std::int32_t LowestRank() const;    // negative: none
  void TakeBatch(std::int32_t rank);  // its nodes, ascending
};

class Bpe final {
 public:
  // kYes: a piece that is a token as a whole is that token, whatever the merges say.
  enum class IgnoreMerges : std::uint8_t { kNo, kYes };
  struct Parameters {
    std::array<std::int32_t, 256> byte_ids;    // the token of each byte
    std::span<const BpeMerge> merges;          // by rank; pairs are distinct; fewer than 2^24
    std::span<const std::string> token_bytes;  // by id; empty: no piece is this token
    IgnoreMerges ignore_merges;
    std::size_t window_bytes;  // longer pieces are encoded window by window; the ids are the same
  };
  explicit Bpe(const Parameters& parameters);

  // Appends the ids of one piece of text, or more of them than `scratch` allows.  O(n) in its
  // length.
  void Append(std::string_view piece, BpeScratch& scratch, std::vector<TokenId>& ids) const;

 private:
  struct PairSlot {
    std::uint64_t pair;
    std::int32_t rank;
    std::int32_t merged;
  };
  struct WordSlot {
    std::uint32_t hash;
    std::int32_t id;  // negative: free
  };

  const PairSlot* FindPair(std::int32_t left, std::int32_t right) const;
  std::int32_t FindWord(std::string_view piece) const;
  void InsertWord(std::string_view bytes, std::int32_t id);
  void AppendMerged(std::string_view piece, BpeScratch& scratch, std::vector<TokenId>& ids) const;
  void AppendShort(std::string_view piece, std::vector<TokenId>& ids) const;
  std::int32_t MergeNode(const BpeMerge& merge, std::uint32_t node, BpeScratch& scratch) const;
  void WaitForPair(std::uint32_t left, std::int32_t& lowest, BpeScratch& scratch) const;
  void AppendWindow(std::string_view window, BpeScratch& scratch, std::vector<TokenId>& ids) const;
  void AppendWindows(std::string_view piece, BpeScratch& scratch, std::vector<TokenId>& ids) const;
  bool StandsBefore(std::string_view piece, std::size_t border, BpeScratch& scratch,
                    TokenId left) const;
  std::size_t SizeOf(TokenId id) const;

  std::array<std::int32_t, 256> byte_ids_;
  std::size_t window_bytes_;
  std::vector<BpeMerge> merges_;
  std::vector<PairSlot> pairs_;  // open addressing, size a power of two
  std::uint64_t pair_mask_;
  std::vector<WordSlot> words_;  // pieces that are one token
  std::uint64_t word_mask_;
  std::string word_bytes_;
  std::vector<std::uint32_t> word_offsets_;  // per id, into word_bytes_; one more at the end
};

}  // namespace dsa
