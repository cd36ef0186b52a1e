// Merging against the definition: merge the leftmost pair of lowest rank until none is left.
#include "tokenizer/bpe.h"

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

struct Vocabulary {
  std::vector<std::string> tokens;  // the 256 bytes, then what merges make
  std::vector<BpeMerge> merges;
};

// Random merges over the letters a, b, c ...; ranks in random order, so that a pair may come before
// the merges that make its parts, and several merges may make the same token.
Vocabulary RandomVocabulary(int letters, int merges, std::mt19937& random) {
  Vocabulary vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.emplace_back(1, static_cast<char>(byte));
  }
  std::vector<std::int32_t> known;
  for (int letter = 0; letter < letters; ++letter) {
    known.push_back('a' + letter);
  }
  std::map<std::pair<std::int32_t, std::int32_t>, bool> pairs;
  for (int i = 0; i < merges; ++i) {
    const std::int32_t left = known[random() % known.size()];
    const std::int32_t right = known[random() % known.size()];
    const std::string whole = vocabulary.tokens[left] + vocabulary.tokens[right];
    if (whole.size() > 12 || pairs[{left, right}]) {
      continue;
    }
    pairs[{left, right}] = true;
    auto found = std::find(vocabulary.tokens.begin(), vocabulary.tokens.end(), whole);
    if (found == vocabulary.tokens.end()) {
      known.push_back(static_cast<std::int32_t>(vocabulary.tokens.size()));
      vocabulary.tokens.push_back(whole);
      found = vocabulary.tokens.end() - 1;
    }
    const auto merged = static_cast<std::int32_t>(found - vocabulary.tokens.begin());
    vocabulary.merges.push_back({.left = left, .right = right, .merged = merged});
  }
  std::shuffle(vocabulary.merges.begin(), vocabulary.merges.end(), random);
  return vocabulary;
}

Bpe MakeBpe(const Vocabulary& vocabulary, std::size_t window_bytes) {
  Bpe::Parameters parameters{.byte_ids = {},
                             .merges = vocabulary.merges,
                             .token_bytes = vocabulary.tokens,
                             .ignore_merges = Bpe::IgnoreMerges::kNo,
                             .window_bytes = window_bytes};
  for (std::size_t byte = 0; byte < 256; ++byte) {
    parameters.byte_ids[byte] = static_cast<std::int32_t>(byte);
  }
  return Bpe(parameters);
}

std::vector<TokenId> MergeByDefinition(const Vocabulary& vocabulary, const std::string& text) {
  std::map<std::pair<std::int32_t, std::int32_t>, std::size_t> ranks;
  for (std::size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    ranks[{vocabulary.merges[rank].left, vocabulary.merges[rank].right}] = rank;
  }
  std::vector<std::int32_t> ids(text.begin(), text.end());
  while (true) {
    std::size_t best_rank = vocabulary.merges.size();
    std::size_t best = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = ranks.find({ids[i], ids[i + 1]});
      if (found != ranks.end() && found->second < best_rank) {
        best_rank = found->second;
        best = i;
      }
    }
    if (best_rank == vocabulary.merges.size()) {
      break;
    }
    ids[best] = vocabulary.merges[best_rank].merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<TokenId> result;
  for (const std::int32_t id : ids) {
    result.push_back(TokenId{id});
  }
  return result;
}

std::string RandomText(std::size_t bytes, int letters, std::mt19937& random) {
  std::string text;
  while (text.size() < bytes) {
    // Runs of one letter and of alternating letters make merges depend on far neighbours.
    const auto first = static_cast<char>('a' + static_cast<int>(random() % letters));
    const auto second = static_cast<char>('a' + static_cast<int>(random() % letters));
    const std::size_t run = 1 + random() % 9;
    for (std::size_t i = 0; i < run; ++i) {
      text += i % 2 == 0 ? first : second;
    }
  }
  text.resize(bytes);
  return text;
}

}  // namespace

TEST_CASE("merging follows its definition, whatever the window", "[tokenizer][bpe]") {
  std::mt19937 random(11);
  for (int round = 0; round < 300; ++round) {
    const int letters = 1 + round % 4;
    const Vocabulary vocabulary = RandomVocabulary(letters, 4 + round % 60, random);
    BpeScratch scratch;
    // 1 << 20: short pieces are scanned, longer ones are sorted by rank; 16 and 100: windows.
    for (const std::size_t window_bytes :
         {std::size_t{1} << 20, std::size_t{16}, std::size_t{100}}) {
      const Bpe bpe = MakeBpe(vocabulary, window_bytes);
      for (const std::size_t bytes : {1, 2, 3, 15, 16, 17, 60, 96, 97, 101, 180, 400}) {
        const std::string text = RandomText(bytes, letters, random);
        std::vector<TokenId> ids = {TokenId{-7}};  // what is there already stays
        bpe.Append(text, scratch, ids);
        std::vector<TokenId> expected = MergeByDefinition(vocabulary, text);
        expected.insert(expected.begin(), TokenId{-7});
        if (ids != expected) {
          CAPTURE(round, window_bytes, text);
          FAIL("ids differ from the definition");
        }
      }
    }
  }
  SUCCEED();
}

TEST_CASE("with ignore_merges a piece that is a token is that token", "[tokenizer][bpe]") {
  Vocabulary vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.emplace_back(1, static_cast<char>(byte));
  }
  vocabulary.tokens.emplace_back("abc");  // no merge makes it
  Bpe::Parameters parameters{.byte_ids = {},
                             .merges = {},
                             .token_bytes = vocabulary.tokens,
                             .ignore_merges = Bpe::IgnoreMerges::kYes,
                             .window_bytes = 64};
  for (std::size_t byte = 0; byte < 256; ++byte) {
    parameters.byte_ids[byte] = static_cast<std::int32_t>(byte);
  }
  BpeScratch scratch;
  std::vector<TokenId> ids;
  Bpe(parameters).Append("abc", scratch, ids);
  CHECK(ids == std::vector<TokenId>{TokenId{256}});
  parameters.ignore_merges = Bpe::IgnoreMerges::kNo;
  ids.clear();
  Bpe(parameters).Append("abc", scratch, ids);
  CHECK(ids == std::vector<TokenId>{TokenId{'a'}, TokenId{'b'}, TokenId{'c'}});
}

}  // namespace dsa
