#include "tokenizer/reply_parser.h"

#include "common/check.h"
#include "tokenizer/dsml_tag.h"
#include "tokenizer/python_json.h"
#include "tokenizer/reply_base.h"

#include <algorithm>
#include <utility>

namespace dsa {
namespace {

constexpr std::string_view kThinkEnd = "</think>";
constexpr std::string_view kMarkStarts = "<\xff";

// `text` without the bytes that enclose the marks of a ReplyDecoder.
void AppendPlain(std::string_view text, std::string& out) {
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find_first_of(kMarkEnclosers, begin), text.size());
    out += text.substr(begin, end - begin);
    begin = end + 1;
  }
}

}  // namespace

void ReplyParserBase::Reserve(std::size_t text_bytes, ReplyDelta& delta) {
  const std::size_t bytes = kDsmlTagBytesMax + text_bytes;  // a tag that may still come, and more
  buffer_.reserve(bytes);
  delta.reasoning.reserve(bytes);
  delta.content.reserve(bytes);
}

void ReplyParserBase::Read(std::string_view text, ReplyDelta& delta) {
  buffer_.erase(0, taken_);
  taken_ = 0;
  buffer_ += text;
  while (Step(delta)) {
  }
}

ReplyDelta ReplyParserBase::Finish(ReplyEnd end) {
  ReplyDelta delta;
  while (true) {
    while (Step(delta)) {
    }
    if (End(end, delta)) {
      continue;
    }
    // The start of a mark that never came is text, and what follows it is looked at again.
    const std::size_t start = buffer().find_first_of(kMarkStarts, plain_bytes_);
    if (start == std::string_view::npos) {
      TakeText(buffer().size(), delta);
      return delta;
    }
    plain_bytes_ = start + 1;
  }
}

std::string_view ReplyParserBase::Take(std::size_t bytes) {
  const std::string_view taken = buffer().substr(0, bytes);
  taken_ += taken.size();
  plain_bytes_ -= std::min(plain_bytes_, taken.size());
  return taken;
}

void ReplyParserBase::PutBack(std::size_t plain_bytes) {
  buffer_.replace(0, taken_, kept_);
  taken_ = 0;
  plain_bytes_ = plain_bytes;
  kept_.clear();
}

void ReplyParserBase::TakeText(std::size_t bytes, ReplyDelta& delta) {
  has_text_ = has_text_ || (bytes > 0 && !buffer().empty());
  AppendPlain(Take(bytes), in_reasoning_ ? delta.reasoning : delta.content);
}

ReplyParserBase::Likeness ReplyParserBase::ThinkEndAt(std::size_t at) const {
  if (!in_reasoning_) {
    return Likeness::kNone;
  }
  const std::string_view rest = buffer().substr(at);
  if (rest.starts_with(kThinkEnd)) {
    return Likeness::kWhole;
  }
  return kThinkEnd.starts_with(rest) ? Likeness::kStart : Likeness::kNone;
}

void ReplyParserBase::TakeThinkEnd() {
  Take(kThinkEnd.size());
  in_reasoning_ = false;
  has_text_ = false;
}

void ReplyParserBase::AddCall(ReplyDelta& delta, std::string name, std::string arguments) {
  delta.tool_calls.push_back({.id = "call_" + std::to_string(calls_),
                              .name = std::move(name),
                              .arguments = std::move(arguments)});
  ++calls_;
}

std::string_view Trim(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(kReplySpaces);
  if (begin == std::string_view::npos) {
    return {};
  }
  return text.substr(begin, text.find_last_not_of(kReplySpaces) + 1 - begin);
}

bool IsJsonObject(std::string_view text) {
  const Result<PythonValue> value = ParsePython(text, "arguments");
  return value.ok() && value.value().kind == PythonValue::Kind::kObject;
}

std::unique_ptr<ReplyParser> MakeReplyParser(ChatFormat format, bool thinking) {
  switch (format) {
    case ChatFormat::kV32: return MakeReplyParserV32(thinking);
    case ChatFormat::kV31: return MakeReplyParserV31(thinking);
  }
  DSA_CHECK(false, "ChatFormat {}", static_cast<int>(format));
  return nullptr;
}

}  // namespace dsa
