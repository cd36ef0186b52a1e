#include "tokenizer/tokenizer.h"

#include "common/check.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/bpe.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/split_pattern.h"
#include "tokenizer/tokenizer_file.h"
#include "tokenizer/utf8.h"
#include "tokenizer/white_space.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::size_t kWindowBytes = std::size_t{16} << 10;  // about 1 MB of working memory

constexpr std::size_t kNoLimit = std::numeric_limits<std::size_t>::max();

// The working memory of one call of Encode.
struct EncodeScratch {
  explicit EncodeScratch(std::size_t limit) : tokens_max(limit), bpe(limit) {}

  const std::size_t tokens_max;  // encoding may stop once there are more
  SplitScratch split;
  BpeScratch bpe;
};

}  // namespace

struct Tokenizer::State {
  State(std::vector<SplitPattern> patterns, const Bpe::Parameters& parameters)
      : stages(std::move(patterns)), bpe(parameters) {}

  // Appends the ids of `piece`, which is valid UTF-8, from the given stage on.  Matches and what
  // lies between them go to the next stage as texts of their own.
  void AppendStage(std::size_t stage, std::string_view piece, EncodeScratch& scratch,
                   std::vector<TokenId>& ids) const {
    if (piece.empty()) {
      return;
    }
    if (stage == stages.size()) {
      bpe.Append(piece, scratch.bpe, ids);
      return;
    }
    std::size_t offset = 0;
    while (offset < piece.size() && ids.size() <= scratch.tokens_max) {
      const auto match = stages[stage].Find(piece, offset, scratch.split);
      if (!match.has_value()) {
        break;
      }
      AppendStage(stage + 1, piece.substr(offset, match->begin - offset), scratch, ids);
      AppendStage(stage + 1, piece.substr(match->begin, match->end - match->begin), scratch, ids);
      offset = match->end;
    }
    if (ids.size() <= scratch.tokens_max) {
      AppendStage(stage + 1, piece.substr(offset), scratch, ids);
    }
  }

  void AppendText(std::string_view text, EncodeScratch& scratch, std::vector<TokenId>& ids) const {
    if (IsValidUtf8(text)) {
      AppendStage(0, text, scratch, ids);
    } else {
      AppendStage(0, RepairUtf8(text), scratch, ids);
    }
  }

  std::vector<AddedTokens::Match> FindAdded(std::string_view text, const TextRange& range) const;

  // `match` with the white space that its token takes; none in front of `done`.
  AddedTokens::Match Widen(std::string_view text, std::size_t done,
                           const AddedTokens::Match& match) const;

  // Appends the ids of `text`, or the first of them where there are more than `scratch` allows.
  void Encode(std::string_view text, std::span<const TextRange> ranges, EncodeScratch& scratch,
              std::vector<TokenId>& ids) const;

  std::vector<SplitPattern> stages;
  Bpe bpe;
  // The reference library first looks for tokens that are matched before normalization, then, in
  // what is left, for the others.
  AddedTokens raw_added;
  AddedTokens normalized_added;
  std::string bytes;                   // of all tokens, one behind the other
  std::vector<std::uint32_t> offsets;  // per id; one more at the end
  std::size_t longest_token_bytes = 0;
  std::map<std::string, TokenId, std::less<>> added_by_content;
  std::vector<bool> is_added;    // by id
  std::vector<bool> is_special;  // by id
  std::set<TokenId> left_strippers;
  std::set<TokenId> right_strippers;
  bool has_template = false;
  std::optional<TokenId> template_prefix;
};

std::vector<AddedTokens::Match> Tokenizer::State::FindAdded(std::string_view text,
                                                            const TextRange& range) const {
  std::vector<AddedTokens::Match> matches;
  const auto find_normalized = [&](std::size_t begin, std::size_t end) {
    while (const auto match = normalized_added.Find(text, begin, end)) {
      matches.push_back(*match);
      begin = match->end;
    }
  };
  std::size_t begin = range.begin;
  while (const auto match = raw_added.Find(text, begin, range.end)) {
    find_normalized(begin, match->begin);
    matches.push_back(*match);
    begin = match->end;
  }
  find_normalized(begin, range.end);
  return matches;
}

AddedTokens::Match Tokenizer::State::Widen(std::string_view text, std::size_t done,
                                           const AddedTokens::Match& match) const {
  AddedTokens::Match wide = match;
  wide.begin = std::max(wide.begin, done);
  if (left_strippers.contains(match.id)) {
    wide.begin -= TrailingSpaceBytes(text.substr(done, wide.begin - done));
  }
  if (right_strippers.contains(match.id)) {
    wide.end += LeadingSpaceBytes(text.substr(wide.end));
  }
  wide.end = std::max(wide.end, done);
  return wide;
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  DSA_ASSIGN_OR_RETURN(const TokenizerFile file, ReadTokenizerFile(path));
  std::vector<SplitPattern> patterns;
  for (std::size_t i = 0; i < file.split_patterns.size(); ++i) {
    Result<SplitPattern> pattern = SplitPattern::Compile(file.split_patterns[i]);
    if (!pattern.ok()) {
      return InvalidArgument(fmt::format("{}: pre_tokenizer.pretokenizers[{}].pattern.Regex: {}",
                                         path, i, pattern.error().message));
    }
    patterns.push_back(std::move(pattern).value());
  }
  std::vector<std::string> token_bytes;
  std::vector<std::string> piece_bytes;  // of the tokens that text can become
  for (const std::string& token : file.tokens) {
    std::optional<std::string> bytes = ByteLevelBytes(token);
    piece_bytes.push_back(bytes.value_or(""));
    token_bytes.push_back(bytes.has_value() ? *std::move(bytes) : token);
  }
  auto state = std::make_unique<State>(std::move(patterns),
                                       Bpe::Parameters{.byte_ids = file.byte_ids,
                                                       .merges = file.merges,
                                                       .token_bytes = piece_bytes,
                                                       .ignore_merges = file.ignore_merges,
                                                       .window_bytes = kWindowBytes});
  for (const AddedTokenEntry& added : file.added_tokens) {
    const auto id = static_cast<std::size_t>(added.id);
    token_bytes.resize(std::max(token_bytes.size(), id + 1));
    token_bytes[id] = added.content;
    (added.normalized ? state->normalized_added : state->raw_added)
        .Insert(added.content, TokenId{added.id});
    state->added_by_content.emplace(added.content, TokenId{added.id});
    state->is_added.resize(std::max(state->is_added.size(), id + 1), false);
    state->is_special.resize(state->is_added.size(), false);
    state->is_added[id] = true;
    state->is_special[id] = added.special;
    for (const auto& [flag, set] : {std::pair(added.strips_left, &state->left_strippers),
                                    std::pair(added.strips_right, &state->right_strippers)}) {
      if (flag) {
        set->insert(TokenId{added.id});
      }
    }
  }
  state->offsets.push_back(0);
  for (const std::string& bytes : token_bytes) {
    state->bytes += bytes;
    state->longest_token_bytes = std::max(state->longest_token_bytes, bytes.size());
    state->offsets.push_back(static_cast<std::uint32_t>(state->bytes.size()));
  }
  if (!state->left_strippers.empty() || !state->right_strippers.empty()) {
    state->longest_token_bytes = kNoLimit;
  }
  state->has_template = file.has_template;
  if (file.prefix_id.has_value()) {
    state->template_prefix = TokenId{*file.prefix_id};
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(state)));
}

std::vector<TokenId> Tokenizer::Encode(std::string_view text) const {
  return EncodeWithAdded(text, {});
}

std::vector<TokenId> Tokenizer::EncodeWithAdded(std::string_view text) const {
  const TextRange all{.begin = 0, .end = text.size()};
  return EncodeWithAdded(text, {&all, 1});
}

std::vector<TokenId> Tokenizer::EncodeWithAdded(std::string_view text,
                                                std::span<const TextRange> ranges) const {
  std::vector<TokenId> ids;
  EncodeScratch scratch(kNoLimit);
  state_->Encode(text, ranges, scratch, ids);
  return ids;
}

std::optional<std::vector<TokenId>> Tokenizer::EncodeAtMost(std::string_view text,
                                                            std::span<const TextRange> ranges,
                                                            std::size_t tokens_max) const {
  if (text.size() / state_->longest_token_bytes > tokens_max) {
    return std::nullopt;
  }
  std::vector<TokenId> ids;
  EncodeScratch scratch(tokens_max);
  state_->Encode(text, ranges, scratch, ids);
  if (ids.size() > tokens_max) {
    return std::nullopt;
  }
  return ids;
}

void Tokenizer::State::Encode(std::string_view text, std::span<const TextRange> ranges,
                              EncodeScratch& scratch, std::vector<TokenId>& ids) const {
  std::size_t done = 0;
  std::size_t checked = 0;
  for (const TextRange& range : ranges) {
    DSA_CHECK(range.begin >= checked && range.end >= range.begin && range.end <= text.size(),
              "EncodeWithAdded: range [{}, {}) of {} bytes", range.begin, range.end, text.size());
    checked = range.end;
    for (const AddedTokens::Match& found : FindAdded(text, range)) {
      const AddedTokens::Match match = Widen(text, done, found);
      AppendText(text.substr(done, match.begin - done), scratch, ids);
      if (ids.size() > scratch.tokens_max) {
        return;
      }
      ids.push_back(match.id);
      done = match.end;
    }
  }
  AppendText(text.substr(done), scratch, ids);
}

std::size_t Tokenizer::longest_token_bytes() const {
  return state_->longest_token_bytes;
}

std::string_view Tokenizer::Bytes(TokenId id) const {
  const std::int32_t index = Value(id);
  if (index < 0 || index >= size()) {
    return {};
  }
  const std::size_t begin = state_->offsets[static_cast<std::size_t>(index)];
  const std::size_t end = state_->offsets[static_cast<std::size_t>(index) + 1];
  return std::string_view(state_->bytes).substr(begin, end - begin);
}

void Tokenizer::Prefetch(TokenId id) const {
  __builtin_prefetch(Bytes(id).data());
}

void Tokenizer::PrefetchPlace(TokenId id) const {
  const std::int32_t index = Value(id);
  if (index >= 0 && index < size()) {
    __builtin_prefetch(&state_->offsets[static_cast<std::size_t>(index)]);
  }
}

std::optional<TokenId> Tokenizer::AddedToken(std::string_view content) const {
  const auto found = state_->added_by_content.find(content);
  return found == state_->added_by_content.end() ? std::nullopt : std::optional(found->second);
}

bool Tokenizer::IsAdded(TokenId id) const {
  const auto index = static_cast<std::size_t>(Value(id));
  return index < state_->is_added.size() && state_->is_added[index];
}

bool Tokenizer::IsSpecial(TokenId id) const {
  const auto index = static_cast<std::size_t>(Value(id));
  return index < state_->is_special.size() && state_->is_special[index];
}

bool Tokenizer::has_template() const {
  return state_->has_template;
}

std::optional<TokenId> Tokenizer::template_prefix() const {
  return state_->template_prefix;
}

std::int32_t Tokenizer::size() const {
  return static_cast<std::int32_t>(state_->offsets.size()) - 1;
}

void IncrementalDecoder::Push(TokenId id, std::string& out) {
  stream_.Push(tokenizer_->Bytes(id), out);
}

void IncrementalDecoder::Finish(std::string& out) {
  stream_.Finish(out);
}

}  // namespace dsa
