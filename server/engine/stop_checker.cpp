#include "server/engine/stop_checker.h"

#include "common/check.h"

#include <algorithm>
#include <utility>

namespace dsa {
namespace {

bool Contains(std::span<const TokenId> ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

StopMatcher::StopMatcher(const std::vector<std::string>& strings) {
  automata_.reserve(strings.size());
  for (const std::string& text : strings) {
    DSA_CHECK(!text.empty() && static_cast<std::int64_t>(text.size()) <= kStopStringBytesMax,
              "StopMatcher: a string of {} bytes", text.size());
    std::vector<std::int16_t> fallback(text.size() + 1, 0);
    std::int16_t border = 0;
    for (std::size_t i = 1; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) {
        border = fallback[border];
      }
      border = static_cast<std::int16_t>(border + (text[i] == text[border] ? 1 : 0));
      fallback[i + 1] = border;
    }
    first_bytes_.set(static_cast<unsigned char>(text[0]));
    automata_.push_back({.text = text, .fallback = std::move(fallback)});
  }
}

std::int64_t StopMatcher::Push(char byte) {
  std::int64_t found = 0;
  held_ = 0;
  for (Automaton& automaton : automata_) {
    std::int16_t matched = automaton.matched;
    while (matched > 0 && automaton.text[matched] != byte) {
      matched = automaton.fallback[matched];
    }
    if (automaton.text[matched] == byte) {
      ++matched;
    }
    if (matched == static_cast<std::int16_t>(automaton.text.size())) {
      found = std::max<std::int64_t>(found, matched);
      matched = automaton.fallback[matched];
    }
    automaton.matched = matched;
    held_ = std::max<std::int64_t>(held_, matched);
  }
  return found;
}

void StopMatcher::Reset() {
  held_ = 0;
  for (Automaton& automaton : automata_) {
    automaton.matched = 0;
  }
}

StopChecker::StopChecker(const StopConditions& stop, const Config& config, Text text)
    : decoder_(std::move(text.decoder)),
      content_(std::move(text.content)),
      ignore_end_(stop.ignore_end),
      max_tokens_(stop.max_tokens),
      end_ids_(config.end_ids),
      stop_ids_(stop.stop_ids),
      matcher_(stop.stop_strings),
      min_tokens_(stop.min_tokens) {
  const std::int64_t bytes = TextBytesMax(config.decoder_bytes_max);
  text_.reserve(bytes);
  if (content_ != nullptr) {
    content_->Reserve(bytes);
    pending_.reserve(bytes);
  }
}

std::optional<FinishReason> StopChecker::Judge(TokenId id, std::int64_t generated) {
  id_ = id;
  is_end_id_ = Contains(end_ids_, id);
  generated_ = generated;
  judged_.reset();
  if ((is_end_id_ && !ignore_end_) || Contains(stop_ids_, id)) {
    judged_ = FinishReason::kStop;
  } else if (generated >= max_tokens_) {
    judged_ = FinishReason::kLength;
  }
  return judged_;
}

std::optional<FinishReason> StopChecker::Show() {
  if (content_ != nullptr) {
    return ShowContent();
  }
  if (judged_ == FinishReason::kStop) {
    Flush();
    return judged_;
  }
  DropShown();
  if (decoder_ != nullptr && !is_end_id_) {
    decoder_->Push(id_, text_);
    if (Match(generated_)) {
      return FinishReason::kStop;
    }
  }
  if (!judged_.has_value()) {
    return std::nullopt;
  }
  if (decoder_ != nullptr) {
    decoder_->Finish(text_);
    if (Match(generated_)) {
      return FinishReason::kStop;
    }
  }
  shown_ = text_.size();
  return judged_;
}

// All text leaves, and the content as far as it cannot be of a stop string.  The model may have
// ended a reply whose last content only its end makes certain.
std::optional<FinishReason> StopChecker::ShowContent() {
  text_.clear();
  if (judged_ != FinishReason::kStop && !is_end_id_) {
    decoder_->Push(id_, text_);
  }
  if (judged_.has_value()) {
    decoder_->Finish(text_);
  }
  shown_ = text_.size();
  content_->Push(text_, pending_);
  if (judged_.has_value()) {
    content_->Finish(*judged_, pending_);
  }
  if (MatchContent()) {
    return FinishReason::kStop;
  }
  content_bytes_max_ = judged_.has_value() ? -1 : content_bytes_ - matcher_.held();
  return judged_;
}

// Reads what is pending.  True where a stop string is complete; the content then ends before its
// first byte.
bool StopChecker::MatchContent() {
  for (const char byte : pending_) {
    const std::int64_t length = matcher_.Push(byte);
    ++content_bytes_;
    if (length > 0 && generated_ >= min_tokens_) {
      content_bytes_max_ = content_bytes_ - length;
      return true;
    }
  }
  pending_.clear();
  return false;
}

void StopChecker::Flush() {
  if (content_ != nullptr) {
    text_.clear();
    decoder_->Finish(text_);
    shown_ = text_.size();
    content_bytes_max_ = -1;
    return;
  }
  DropShown();
  if (decoder_ != nullptr) {
    decoder_->Finish(text_);
  }
  shown_ = text_.size();
  matched_ = shown_;
}

// Keeps only what is held back: at most the longest stop string.
void StopChecker::DropShown() {
  if (shown_ == text_.size()) {
    text_.clear();  // as a rule, and much the quickest
  } else {
    text_.erase(0, shown_);
  }
  matched_ -= shown_;
  shown_ = 0;
}

// Reads the bytes behind `matched_`.  True where a stop string is complete; the text then ends
// before its first byte.
bool StopChecker::Match(std::int64_t generated) {
  matched_ += matcher_.CountPlain(std::string_view(text_).substr(matched_));  // nearly all
  for (; matched_ < text_.size(); ++matched_) {
    const std::int64_t length = matcher_.Push(text_[matched_]);
    if (length > 0 && generated >= min_tokens_) {
      text_.resize(matched_ + 1 - length);
      shown_ = text_.size();
      matched_ = shown_;
      return true;
    }
  }
  shown_ = text_.size() - matcher_.held();
  return false;
}

}  // namespace dsa
