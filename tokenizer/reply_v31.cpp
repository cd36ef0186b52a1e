// Replies of DeepSeek-V3.1, V3.1-Terminus and V3.2-Exp: tool calls stand between control tokens,
// which a ReplyDecoder encloses.
#include "tokenizer/reply_base.h"

#include <algorithm>
#include <optional>

namespace dsa {
namespace {

constexpr std::size_t kNameBytesMax = 256;

// The inside of a fence: "```json", a line feed, the text, "```".  Nothing where it is none.
std::optional<std::string_view> InsideFence(std::string_view text) {
  constexpr std::string_view kFence = "```";
  const std::size_t line = text.find('\n');
  if (!text.starts_with(kFence) || !text.ends_with(kFence) || line == std::string_view::npos ||
      text.size() - line <= kFence.size()) {
    return std::nullopt;
  }
  return Trim(text.substr(line, text.size() - line - kFence.size()));
}

struct Call {
  std::string_view name;
  std::string_view arguments;  // empty: none that can be read
};

// "NAME", {...}; or R1's "function", a line with the name and the arguments in a fence.
Call ReadCall(std::string_view name, std::string_view text) {
  constexpr std::string_view kEmptyObject = "{}";
  constexpr std::string_view kOlderType = "function";
  name = Trim(name);
  text = Trim(text);
  if (name == kOlderType && !text.empty() && text.front() != '{') {
    const std::size_t line = std::min(text.find('\n'), text.size());
    name = Trim(text.substr(0, line));
    text = Trim(text.substr(line));
  }
  if (text.starts_with('`')) {
    const std::optional<std::string_view> inside = InsideFence(text);
    if (!inside.has_value()) {
      return {.name = name, .arguments = {}};
    }
    text = *inside;
  }
  if (text.empty()) {
    text = kEmptyObject;
  }
  return {.name = name, .arguments = IsJsonObject(text) ? text : std::string_view()};
}

class ReplyParserV31 final : public ReplyParserBase {
 public:
  using ReplyParserBase::ReplyParserBase;

 protected:
  bool Step(ReplyDelta& delta) override {
    switch (place_) {
      case Place::kText: return StepText(delta);
      case Place::kOpened: return StepOpened();
      case Place::kName:
      case Place::kArguments: return StepCall(delta);
      case Place::kBehindCall: return StepBehindCall();
    }
    return false;
  }

  bool End(ReplyEnd end, ReplyDelta& delta) override {
    if (place_ == Place::kText || place_ == Place::kBehindCall) {
      place_ = Place::kText;
      return false;
    }
    const bool whole = place_ == Place::kArguments && end == ReplyEnd::kByModel &&
                       buffer().empty() && !Trim(arguments_).empty();
    if (whole && GiveCall(delta)) {
      return false;
    }
    return Fail();
  }

 private:
  enum class Place {
    kText,
    kOpened,      // behind the mark that opens the calls
    kName,        // of a call
    kArguments,   // of a call
    kBehindCall,  // white space belongs to the markup from here on
  };

  bool Fail() {
    PutBack(1);
    name_.clear();
    arguments_.clear();
    place_ = Place::kText;
    return true;
  }

  // The mark that the buffer begins with; empty where its end is not there yet.
  std::string_view MarkHere() const {
    const std::size_t end = buffer().find(kMarkEnd);
    return end == std::string_view::npos ? std::string_view() : buffer().substr(1, end - 1);
  }

  void OpenCall(std::size_t mark_bytes) {
    Keep(Take(mark_bytes + kMarkEnclosers.size()));
    name_.clear();
    arguments_.clear();
    place_ = Place::kName;
  }

  bool StepText(ReplyDelta& delta) {
    constexpr char kFirst[] = {kMarkBegin, '<'};
    const auto find = [&](std::size_t from) {
      return std::min(buffer().find_first_of(std::string_view(kFirst, 2), from), buffer().size());
    };
    for (std::size_t at = find(plain_bytes()); at < buffer().size(); at = find(at + 1)) {
      const Likeness think_end = ThinkEndAt(at);
      if (think_end == Likeness::kWhole) {
        TakeText(at, delta);
        TakeThinkEnd();
        return true;
      }
      if (think_end == Likeness::kStart) {
        TakeText(at, delta);
        return false;
      }
      if (buffer()[at] != kMarkBegin) {
        continue;
      }
      TakeText(at, delta);
      return StepMark(delta);
    }
    TakeText(buffer().size(), delta);
    return false;
  }

  // A mark in the text, at the start of the buffer.
  bool StepMark(ReplyDelta& delta) {
    const std::string_view mark = MarkHere();
    if (mark.empty()) {
      return false;
    }
    if (mark == kCallBegin) {
      OpenCall(mark.size());
    } else if (mark == kCallsBegin) {
      Keep(Take(mark.size() + kMarkEnclosers.size()));
      place_ = Place::kOpened;
    } else {
      TakeText(mark.size() + kMarkEnclosers.size(), delta);  // of nothing
    }
    return true;
  }

  bool StepOpened() {
    Keep(Take(std::min(buffer().find_first_not_of(kReplySpaces), buffer().size())));
    if (buffer().empty()) {
      return false;
    }
    if (buffer().front() != kMarkBegin) {
      return Fail();
    }
    const std::string_view mark = MarkHere();
    if (mark.empty()) {
      return false;
    }
    if (mark != kCallBegin) {
      return Fail();
    }
    OpenCall(mark.size());
    return true;
  }

  // Within a call, up to the next mark.
  bool StepCall(ReplyDelta& delta) {
    const std::size_t end = std::min(buffer().find(kMarkBegin), buffer().size());
    const std::string_view text = Take(end);
    (place_ == Place::kName ? name_ : arguments_) += text;
    Keep(text);
    if (!MayBeCall()) {
      return Fail();
    }
    if (buffer().empty() || MarkHere().empty()) {
      return false;
    }
    const std::string_view mark = MarkHere();
    if (place_ == Place::kName && mark == kToolSeparator && !Trim(name_).empty()) {
      Keep(Take(mark.size() + kMarkEnclosers.size()));
      place_ = Place::kArguments;
      return true;
    }
    const bool closes = mark == kCallEnd || mark == kCallBegin || mark == kCallsEnd;
    if (place_ == Place::kName || !closes || !GiveCall(delta)) {
      return Fail();
    }
    if (mark == kCallEnd) {
      Take(mark.size() + kMarkEnclosers.size());
    }
    return true;
  }

  // Prose behind a mark is none of a call, and is not held back for long.
  bool MayBeCall() const {
    const std::string_view name = Trim(name_);
    if (name.size() > kNameBytesMax || name.find('\n') != std::string_view::npos) {
      return false;
    }
    const std::string_view arguments = Trim(arguments_);
    return arguments.empty() || arguments.front() == '{' || arguments.front() == '`' ||
           name == "function";
  }

  bool GiveCall(ReplyDelta& delta) {
    const Call call = ReadCall(name_, arguments_);
    if (call.name.empty() || call.arguments.empty()) {
      return false;
    }
    AddCall(delta, std::string(call.name), std::string(call.arguments));
    Forget();
    place_ = Place::kBehindCall;
    return true;
  }

  bool StepBehindCall() {
    Take(std::min(buffer().find_first_not_of(kReplySpaces), buffer().size()));
    if (buffer().empty()) {
      return false;
    }
    std::string_view mark;
    if (buffer().front() == kMarkBegin) {
      mark = MarkHere();
      if (mark.empty()) {
        return false;
      }
    }
    if (mark == kCallBegin) {
      OpenCall(mark.size());
    } else if (mark == kCallsEnd || mark == kCallEnd) {
      Take(mark.size() + kMarkEnclosers.size());
    } else {
      place_ = Place::kText;
    }
    return true;
  }

  Place place_ = Place::kText;
  std::string name_;
  std::string arguments_;
};

}  // namespace

std::unique_ptr<ReplyParser> MakeReplyParserV31(bool thinking) {
  return std::make_unique<ReplyParserV31>(thinking);
}

}  // namespace dsa
