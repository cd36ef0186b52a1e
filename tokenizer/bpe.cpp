#include "tokenizer/bpe.h"

#include "common/check.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

namespace dsa {
namespace {

// Up to here scanning all pairs for the lowest rank is quicker than keeping them sorted.
constexpr std::size_t kShortBytesMax = 96;
constexpr std::int32_t kNoRank = std::numeric_limits<std::int32_t>::max();
constexpr std::uint64_t kMultiplier = 0x9e3779b97f4a7c15U;  // 2^64 / golden ratio

std::uint64_t PairKey(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

std::uint64_t HashPair(std::uint64_t pair) {
  const std::uint64_t product = pair * kMultiplier;
  return product ^ product >> 32;
}

std::uint64_t HashBytes(std::string_view bytes) {
  std::uint64_t hash = bytes.size();
  while (!bytes.empty()) {
    std::uint64_t word = 0;
    const std::size_t count = std::min(bytes.size(), sizeof(word));
    std::memcpy(&word, bytes.data(), count);
    hash = (hash ^ word) * kMultiplier;
    hash ^= hash >> 32;
    bytes.remove_prefix(count);
  }
  return hash;
}

std::size_t TableSize(std::size_t entries) {
  return std::bit_ceil(std::max<std::size_t>(entries * 2, 16));  // at most half full
}

}  // namespace

void BpeScratch::Start(std::size_t ranks) {
  if (heads_.size() == ranks) {
    return;  // the last piece left nothing waiting
  }
  heads_.assign(ranks, kNone);
  std::size_t bits = ranks;
  for (std::vector<std::uint64_t>& level : ranks_) {
    bits = bits / 64 + 1;
    level.assign(bits, 0);
  }
}

void BpeScratch::Wait(std::uint32_t node, std::int32_t rank) {
  std::uint32_t entry = free_;
  if (entry == kNone) {
    entry = static_cast<std::uint32_t>(waiting_.size());
    waiting_.emplace_back();
  } else {
    free_ = waiting_[entry].next;
  }
  std::uint32_t& head = heads_[static_cast<std::size_t>(rank)];
  waiting_[entry] = {.node = node, .next = head};
  if (head == kNone) {
    auto bit = static_cast<std::size_t>(rank);
    for (std::vector<std::uint64_t>& level : ranks_) {
      level[bit / 64] |= std::uint64_t{1} << (bit % 64);
      bit /= 64;
    }
  }
  head = entry;
}

std::int32_t BpeScratch::LowestRank() const {
  std::size_t word = 0;
  for (std::size_t level = ranks_.size(); level-- > 0;) {
    const std::uint64_t bits = ranks_[level][word];
    if (bits == 0) {
      return -1;  // only at the top
    }
    word = word * 64 + static_cast<std::size_t>(std::countr_zero(bits));
  }
  return static_cast<std::int32_t>(word);
}

void BpeScratch::TakeBatch(std::int32_t rank) {
  batch_.clear();
  std::uint32_t& head = heads_[static_cast<std::size_t>(rank)];
  std::uint32_t last = head;
  for (std::uint32_t entry = head; entry != kNone; entry = waiting_[entry].next) {
    batch_.push_back(waiting_[entry].node);
    last = entry;
  }
  waiting_[last].next = free_;
  free_ = head;
  head = kNone;
  auto bit = static_cast<std::size_t>(rank);
  for (std::vector<std::uint64_t>& level : ranks_) {
    level[bit / 64] &= ~(std::uint64_t{1} << (bit % 64));
    if (level[bit / 64] != 0) {
      break;
    }
    bit /= 64;
  }
  // Last in, first out: nearly always ascending once reversed.
  std::reverse(batch_.begin(), batch_.end());
  if (!std::is_sorted(batch_.begin(), batch_.end())) {
    std::sort(batch_.begin(), batch_.end());
  }
}

Bpe::Bpe(const Parameters& parameters)
    : byte_ids_(parameters.byte_ids),
      window_bytes_(parameters.window_bytes),
      merges_(parameters.merges.begin(), parameters.merges.end()),
      pairs_(TableSize(merges_.size()), PairSlot{.pair = 0, .rank = kNoRank, .merged = -1}),
      pair_mask_(pairs_.size() - 1),
      words_(TableSize(parameters.token_bytes.size()), WordSlot{.hash = 0, .id = -1}),
      word_mask_(words_.size() - 1) {
  DSA_CHECK(merges_.size() < (std::size_t{1} << 24), "Bpe: {} merges", merges_.size());
  for (std::size_t rank = 0; rank < merges_.size(); ++rank) {
    const std::uint64_t pair = PairKey(merges_[rank].left, merges_[rank].right);
    std::uint64_t slot = HashPair(pair) & pair_mask_;
    while (pairs_[slot].rank != kNoRank) {
      slot = (slot + 1) & pair_mask_;
    }
    pairs_[slot] = {
        .pair = pair, .rank = static_cast<std::int32_t>(rank), .merged = merges_[rank].merged};
  }
  word_offsets_.push_back(0);
  for (const std::string& bytes : parameters.token_bytes) {
    word_bytes_ += bytes;
    word_offsets_.push_back(static_cast<std::uint32_t>(word_bytes_.size()));
  }
  BpeScratch scratch;
  std::vector<TokenId> ids;
  for (std::size_t id = 0; id < parameters.token_bytes.size(); ++id) {
    const std::string& bytes = parameters.token_bytes[id];
    ids.clear();
    AppendMerged(bytes, scratch, ids);
    const bool whole = ids.size() == 1 && static_cast<std::size_t>(Value(ids[0])) == id;
    if (whole || (!bytes.empty() && parameters.ignore_merges == IgnoreMerges::kYes)) {
      InsertWord(bytes, static_cast<std::int32_t>(id));
    }
  }
}

const Bpe::PairSlot* Bpe::FindPair(std::int32_t left, std::int32_t right) const {
  const std::uint64_t pair = PairKey(left, right);
  std::uint64_t slot = HashPair(pair) & pair_mask_;
  while (pairs_[slot].rank != kNoRank) {
    if (pairs_[slot].pair == pair) {
      return &pairs_[slot];
    }
    slot = (slot + 1) & pair_mask_;
  }
  return nullptr;
}

void Bpe::InsertWord(std::string_view bytes, std::int32_t id) {
  const std::uint64_t hash = HashBytes(bytes);
  std::uint64_t slot = hash & word_mask_;
  while (words_[slot].id >= 0) {
    slot = (slot + 1) & word_mask_;
  }
  words_[slot] = {.hash = static_cast<std::uint32_t>(hash >> 32), .id = id};
}

std::int32_t Bpe::FindWord(std::string_view piece) const {
  const std::uint64_t hash = HashBytes(piece);
  std::uint64_t slot = hash & word_mask_;
  for (; words_[slot].id >= 0; slot = (slot + 1) & word_mask_) {
    const WordSlot& word = words_[slot];
    if (word.hash != static_cast<std::uint32_t>(hash >> 32)) {
      continue;
    }
    const std::uint32_t begin = word_offsets_[static_cast<std::size_t>(word.id)];
    const std::uint32_t end = word_offsets_[static_cast<std::size_t>(word.id) + 1];
    if (end - begin == piece.size() &&
        std::memcmp(word_bytes_.data() + begin, piece.data(), piece.size()) == 0) {
      return word.id;
    }
  }
  return -1;
}

void Bpe::Append(std::string_view piece, BpeScratch& scratch, std::vector<TokenId>& ids) const {
  const std::int32_t whole = FindWord(piece);
  if (whole >= 0) {
    ids.push_back(TokenId{whole});
    return;
  }
  AppendMerged(piece, scratch, ids);
}

void Bpe::AppendMerged(std::string_view piece, BpeScratch& scratch,
                       std::vector<TokenId>& ids) const {
  if (piece.size() > window_bytes_) {
    AppendWindows(piece, scratch, ids);
  } else if (piece.size() > kShortBytesMax) {
    AppendWindow(piece, scratch, ids);
  } else {
    AppendShort(piece, ids);
  }
}

void Bpe::AppendShort(std::string_view piece, std::vector<TokenId>& ids) const {
  struct Symbol {
    std::int32_t id;
    std::int32_t rank;    // of the pair with the next symbol
    std::int32_t merged;  // what that pair becomes
  };
  std::array<Symbol, kShortBytesMax> symbols;
  std::size_t count = piece.size();
  const auto rate = [&](std::size_t left) {
    const PairSlot* pair =
        left + 1 < count ? FindPair(symbols[left].id, symbols[left + 1].id) : nullptr;
    symbols[left].rank = pair == nullptr ? kNoRank : pair->rank;
    symbols[left].merged = pair == nullptr ? -1 : pair->merged;
  };
  for (std::size_t i = 0; i < count; ++i) {
    symbols[i].id = byte_ids_[static_cast<unsigned char>(piece[i])];
  }
  for (std::size_t i = 0; i < count; ++i) {
    rate(i);
  }
  while (count > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < count; ++i) {
      best = symbols[i].rank < symbols[best].rank ? i : best;
    }
    if (symbols[best].rank == kNoRank) {
      break;
    }
    symbols[best].id = symbols[best].merged;
    std::copy(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 2,
              symbols.begin() + static_cast<std::ptrdiff_t>(count),
              symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    --count;
    rate(best);
    if (best > 0) {
      rate(best - 1);
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    ids.push_back(TokenId{symbols[i].id});
  }
}

void Bpe::WaitForPair(std::uint32_t left, std::int32_t& lowest, BpeScratch& scratch) const {
  const std::uint32_t right = left == BpeScratch::kNone ? left : scratch.nodes_[left].next;
  if (right == BpeScratch::kNone) {
    return;
  }
  const PairSlot* pair = FindPair(scratch.nodes_[left].id, scratch.nodes_[right].id);
  if (pair != nullptr) {
    scratch.Wait(left, pair->rank);
    lowest = std::min(lowest, pair->rank);
  }
}

// Merges the pair at `node` if it still is that of `merge`.  Returns the lowest rank among the
// pairs that came into being.
std::int32_t Bpe::MergeNode(const BpeMerge& merge, std::uint32_t node, BpeScratch& scratch) const {
  std::vector<BpeScratch::Node>& nodes = scratch.nodes_;
  const std::uint32_t right = nodes[node].next;
  if (nodes[node].id != merge.left || right == BpeScratch::kNone ||
      nodes[right].id != merge.right) {
    return kNoRank;
  }
  nodes[node].id = merge.merged;
  nodes[node].next = nodes[right].next;
  nodes[right].id = -1;
  if (nodes[node].next != BpeScratch::kNone) {
    nodes[nodes[node].next].previous = node;
  }
  std::int32_t lowest = kNoRank;
  WaitForPair(nodes[node].previous, lowest, scratch);
  WaitForPair(node, lowest, scratch);
  return lowest;
}

void Bpe::AppendWindow(std::string_view piece, BpeScratch& scratch,
                       std::vector<TokenId>& ids) const {
  scratch.Start(merges_.size());
  const auto count = static_cast<std::uint32_t>(piece.size());
  scratch.nodes_.resize(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    scratch.nodes_[i] = {.id = byte_ids_[static_cast<unsigned char>(piece[i])],
                         .previous = i == 0 ? BpeScratch::kNone : i - 1,
                         .next = i + 1 == count ? BpeScratch::kNone : i + 1};
  }
  std::int32_t ignored = kNoRank;
  for (std::uint32_t i = 0; i < count; ++i) {
    WaitForPair(i, ignored, scratch);
  }
  for (std::int32_t rank = scratch.LowestRank(); rank >= 0; rank = scratch.LowestRank()) {
    scratch.TakeBatch(rank);
    const BpeMerge& merge = merges_[static_cast<std::size_t>(rank)];
    for (std::size_t i = 0; i < scratch.batch_.size(); ++i) {
      if (MergeNode(merge, scratch.batch_[i], scratch) < rank) {
        // A new pair goes first (no trained vocabulary has such merges): the rest waits again.
        for (std::size_t rest = i + 1; rest < scratch.batch_.size(); ++rest) {
          scratch.Wait(scratch.batch_[rest], rank);
        }
        break;
      }
    }
  }
  for (std::uint32_t i = 0; i != BpeScratch::kNone; i = scratch.nodes_[i].next) {
    ids.push_back(TokenId{scratch.nodes_[i].id});
  }
}

std::size_t Bpe::SizeOf(TokenId id) const {
  const auto index = static_cast<std::size_t>(Value(id));
  return word_offsets_[index + 1] - word_offsets_[index];
}

// Whether no merge crosses `border` in `piece`, where `left` ends and the window's first token
// begins.
bool Bpe::StandsBefore(std::string_view piece, std::size_t border, BpeScratch& scratch,
                       TokenId left) const {
  const TokenId right = scratch.window_ids_.front();
  const std::size_t begin = border - SizeOf(left);
  std::vector<TokenId>& ids = scratch.junction_ids_;
  ids.clear();
  const std::string_view both = piece.substr(begin, SizeOf(left) + SizeOf(right));
  if (both.size() > kShortBytesMax) {
    AppendWindow(both, scratch, ids);
  } else {
    AppendShort(both, ids);
  }
  return ids.size() == 2 && ids[0] == left && ids[1] == right;
}

// Merges are independent on the two sides of a border until the first one crosses it, and whether
// one does depends on nothing but the two tokens that meet there.  So the ids of two neighbouring
// texts are the ids of both together where those two tokens, encoded together, stay as they are.
// Windows keep the working memory in the processor's cache: without them, time grows faster than
// the piece.
void Bpe::AppendWindows(std::string_view piece, BpeScratch& scratch,
                        std::vector<TokenId>& ids) const {
  constexpr std::size_t kSeenAgainMax = 16;  // a window's last tokens may still change
  std::vector<TokenId>& window = scratch.window_ids_;
  const std::size_t first = ids.size();
  std::size_t begin = 0;
  std::size_t end = 0;
  while (true) {
    end = std::min(end + window_bytes_, piece.size());
    window.clear();
    AppendWindow(piece.substr(begin, end - begin), scratch, window);
    for (std::size_t back = kSeenAgainMax;
         ids.size() > first && !StandsBefore(piece, begin, scratch, ids.back()); back *= 2) {
      for (std::size_t i = 0; i < back && ids.size() > first; ++i) {
        begin -= SizeOf(ids.back());
        ids.pop_back();
      }
      window.clear();
      AppendWindow(piece.substr(begin, end - begin), scratch, window);
    }
    const std::size_t seen_again =
        end == piece.size() ? 0 : std::min(kSeenAgainMax, window.size() / 2);
    for (std::size_t i = 0; i + seen_again < window.size(); ++i) {
      ids.push_back(window[i]);
      begin += SizeOf(window[i]);
    }
    if (end == piece.size() || ids.size() > scratch.ids_max_) {
      return;
    }
  }
}

}  // namespace dsa
