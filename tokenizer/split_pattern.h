// One Split stage of tokenizer.json: a regular expression in PCRE2, compiled just in time, that
// matches what the reference library's Oniguruma matches.  Immutable after compiling; thread-safe
// with one SplitScratch a thread.
#pragma once

#include "common/status.h"

#include <memory>
#include <optional>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace dsa {

// The working memory of a match.  One per call of Encode.
class SplitScratch final {
 public:
  SplitScratch();
  ~SplitScratch();
  SplitScratch(const SplitScratch&) = delete;
  SplitScratch& operator=(const SplitScratch&) = delete;

 private:
  friend class SplitPattern;
  pcre2_real_match_data_8* match_data_;
  pcre2_real_jit_stack_8* jit_stack_;
  pcre2_real_match_context_8* context_;
};

class SplitPattern final {
 public:
  struct Match {
    std::size_t begin;
    std::size_t end;  // > begin
  };

  // An error names what in the pattern is not supported.
  static Result<SplitPattern> Compile(std::string_view pattern);
  SplitPattern(SplitPattern&&) noexcept = default;
  SplitPattern& operator=(SplitPattern&&) noexcept = default;
  ~SplitPattern() = default;

  // The first match that begins at `offset` or later; `text` is valid UTF-8 and its end is the end
  // of the text for look-ahead.  Matches are never empty.
  std::optional<Match> Find(std::string_view text, std::size_t offset, SplitScratch& scratch) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };
  explicit SplitPattern(pcre2_real_code_8* code) : code_(code) {}
  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
};

// The pattern for PCRE2: \s is Unicode's White_Space (PCRE2's own also has U+180E), categories are
// those of Unicode 16, and constructs whose meaning differs between the two libraries, or whose
// match may need memory in proportion to the text, are refused.
Result<std::string> TranslateSplitPattern(std::string_view pattern);

}  // namespace dsa
