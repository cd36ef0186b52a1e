#include "tokenizer/dsml_tag.h"

#include "tokenizer/reply_base.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr std::string_view kOpen = "<｜DSML｜";
constexpr std::string_view kClose = "</｜DSML｜";
constexpr std::size_t kCloseBytesMax = 96;

struct Word {
  std::string_view text;
  DsmlTag::Kind kind;
};
constexpr Word kWords[] = {
    {"function_calls", DsmlTag::Kind::kCalls}, {"tool_calls", DsmlTag::Kind::kCalls},
    {"function_call", DsmlTag::Kind::kCalls},  {"tool_call", DsmlTag::Kind::kCalls},
    {"invoke", DsmlTag::Kind::kInvoke},        {"parameter", DsmlTag::Kind::kParameter}};

bool IsWordLetter(char letter) {
  return (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') || letter == '_';
}

const Word* FindWord(std::string_view text) {
  const auto* found = std::find_if(std::begin(kWords), std::end(kWords),
                                   [&](const Word& word) { return word.text == text; });
  return found == std::end(kWords) ? nullptr : found;
}

// Reads on through the inside of an opening tag.
class Reader final {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  bool at_end() const { return at_ == text_.size(); }
  char next() const { return text_[at_]; }
  std::size_t at() const { return at_; }
  void Skip(std::size_t bytes) { at_ += bytes; }
  void SkipSpaces() { at_ = std::min(text_.find_first_not_of(kReplySpaces, at_), text_.size()); }

  std::string_view ReadWord() {
    const std::size_t begin = at_;
    at_ = SkipWord(at_);
    return text_.substr(begin, at_ - begin);
  }

  // A value between quotes.  A quote within ends it only where a tag may go on behind it, at once
  // with the next attribute too.  Without quotes it is one word.
  DsmlRead ReadValue(std::string& value) {
    const char quote = next();
    if (quote != '"' && quote != '\'') {
      const std::size_t end = text_.find_first_of(" \t\r\n/>\"'=<", at_);
      if (end == std::string_view::npos) {
        return DsmlRead::kPartial;
      }
      value = text_.substr(at_, end - at_);
      at_ = end;
      return value.empty() ? DsmlRead::kNone : DsmlRead::kTag;
    }
    for (std::size_t end = text_.find(quote, at_ + 1); end != std::string_view::npos;
         end = text_.find(quote, end + 1)) {
      if (end + 1 == text_.size()) {
        return DsmlRead::kPartial;
      }
      const std::size_t word = SkipWord(end + 1);
      if (word == text_.size() || (text_[word] == '=' && word + 1 == text_.size())) {
        return DsmlRead::kPartial;
      }
      const bool attribute =
          word > end + 1 && text_[word] == '=' &&
          std::string_view("\"'").find(text_[word + 1]) != std::string_view::npos;
      if (attribute ||
          std::string_view(" \t\r\n/>").find(text_[end + 1]) != std::string_view::npos) {
        value = text_.substr(at_ + 1, end - at_ - 1);
        at_ = end + 1;
        return DsmlRead::kTag;
      }
    }
    return DsmlRead::kPartial;
  }

 private:
  std::size_t SkipWord(std::size_t at) const {
    while (at < text_.size() && IsWordLetter(text_[at])) {
      ++at;
    }
    return at;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

// NAME="VALUE" up to ">".
DsmlRead ReadAttributes(Reader& reader, DsmlTag& tag) {
  while (true) {
    reader.SkipSpaces();
    if (!reader.at_end() && reader.next() == '/') {
      reader.Skip(1);
    }
    if (reader.at_end()) {
      return DsmlRead::kPartial;
    }
    if (reader.next() == '>') {
      reader.Skip(1);
      tag.bytes = reader.at();
      return DsmlRead::kTag;
    }
    const std::string_view key = reader.ReadWord();
    reader.SkipSpaces();
    if (reader.at_end()) {
      return DsmlRead::kPartial;
    }
    if (key.empty() || reader.next() != '=') {
      return DsmlRead::kNone;
    }
    reader.Skip(1);
    reader.SkipSpaces();
    if (reader.at_end()) {
      return DsmlRead::kPartial;
    }
    std::string value;
    const DsmlRead read = reader.ReadValue(value);
    if (read != DsmlRead::kTag) {
      return read;
    }
    if (key == "name") {
      tag.name = std::move(value);
    } else if (key == "string") {
      tag.is_string = value == "true" || value == "True" || value == "TRUE";
    }
  }
}

DsmlRead ReadOpening(std::string_view text, DsmlTag& tag) {
  Reader reader(text);
  reader.Skip(kOpen.size());
  reader.SkipSpaces();
  const std::string_view word = reader.ReadWord();
  if (reader.at_end()) {
    const bool begun = std::any_of(std::begin(kWords), std::end(kWords),
                                   [&](const Word& known) { return known.text.starts_with(word); });
    return begun ? DsmlRead::kPartial : DsmlRead::kNone;
  }
  const Word* known = FindWord(word);
  if (known == nullptr) {
    return DsmlRead::kNone;
  }
  tag.kind = known->kind;
  const DsmlRead read = ReadAttributes(reader, tag);
  const std::size_t bytes = read == DsmlRead::kTag ? tag.bytes : text.size();
  // Outside of a call a tag is short and one line: a mark in prose does not reach far.
  const bool broken =
      bytes > kDsmlTagBytesMax || (tag.kind != DsmlTag::Kind::kParameter &&
                                   text.substr(0, bytes).find('\n') != std::string_view::npos);
  const bool nameless =
      read == DsmlRead::kTag && tag.kind != DsmlTag::Kind::kCalls && tag.name.empty();
  return broken || nameless ? DsmlRead::kNone : read;
}

// Up to ">", or to where it is plain that this was forgotten.
DsmlRead ReadClosing(std::string_view text, DsmlTag& tag) {
  tag.closing = true;
  const std::size_t end = text.find_first_of(">\n<", kClose.size());
  if (end == std::string_view::npos && text.size() < kCloseBytesMax) {
    return DsmlRead::kPartial;
  }
  if (end >= kCloseBytesMax) {
    return DsmlRead::kNone;
  }
  const Word* known = FindWord(Trim(text.substr(kClose.size(), end - kClose.size())));
  tag.kind = known == nullptr ? DsmlTag::Kind::kOther : known->kind;
  tag.bytes = text[end] == '>' ? end + 1 : end;
  return DsmlRead::kTag;
}

}  // namespace

DsmlRead ReadDsmlTag(std::string_view text, DsmlTag& tag) {
  tag = {};
  if (text.starts_with(kOpen)) {
    return ReadOpening(text, tag);
  }
  if (text.starts_with(kClose)) {
    return ReadClosing(text, tag);
  }
  return kOpen.starts_with(text) || kClose.starts_with(text) ? DsmlRead::kPartial : DsmlRead::kNone;
}

std::size_t FindDsmlTag(std::string_view text, std::size_t from, bool& whole) {
  for (std::size_t at = text.find('<', from); at != std::string_view::npos;
       at = text.find('<', at + 1)) {
    const std::string_view rest = text.substr(at);
    whole = rest.starts_with(kOpen) || rest.starts_with(kClose);
    if (whole || kOpen.starts_with(rest) || kClose.starts_with(rest)) {
      return at;
    }
  }
  whole = false;
  return text.size();
}

}  // namespace dsa
