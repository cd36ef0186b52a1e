// Replies of DeepSeek-V3.2.  More lenient than the model's own parser, which accepts nothing but
// well-formed text.
#include "tokenizer/dsml_tag.h"
#include "tokenizer/python_json.h"
#include "tokenizer/reply_base.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace dsa {
namespace {

constexpr std::size_t kFeedsMax = 2;  // line feeds in front of a block belong to it

class ReplyParserV32 final : public ReplyParserBase {
 public:
  using ReplyParserBase::ReplyParserBase;

 protected:
  bool Step(ReplyDelta& delta) override {
    switch (place_) {
      case Place::kText: return StepText(delta);
      case Place::kOpened: return StepOpened();
      case Place::kInCall: return StepCall(delta);
      case Place::kInObject: return StepObject();
      case Place::kInValue: return StepValue();
      case Place::kBehindCall:
      case Place::kBehindBlock: return StepBehindCall();
    }
    return false;
  }

  bool End(ReplyEnd end, ReplyDelta& delta) override {
    const bool whole = end == ReplyEnd::kByModel && buffer().empty();
    switch (place_) {
      case Place::kText: return false;
      case Place::kBehindCall:
      case Place::kBehindBlock:
        if (IsHalfClosing()) {
          Take(buffer().size());
        }
        return GoOnAsText();
      case Place::kInCall:
        if (whole) {
          FinishCall(delta);
          return false;
        }
        return Fail();
      case Place::kInObject:
        if (whole && IsJsonObject(object_)) {
          FinishCall(delta);
          return false;
        }
        return Fail();
      case Place::kOpened:
      case Place::kInValue: return Fail();
    }
    return false;
  }

 private:
  enum class Place {
    kText,
    kOpened,       // behind the block's opening tag
    kInCall,       // between parameters
    kInObject,     // in a call that holds the object itself
    kInValue,      // of a parameter
    kBehindCall,   // white space belongs to the markup from here on
    kBehindBlock,  // behind the block's closing tag
  };

  struct Parameter {
    std::string name;
    std::string value;  // as JSON
  };

  // The tag that the buffer begins with.
  DsmlRead ReadTag(DsmlTag& tag) const { return ReadDsmlTag(buffer(), tag); }

  void KeepTaken(std::size_t bytes) { Keep(Take(bytes)); }

  // What looked like a call is text, from its first tag on.
  bool Fail() {
    PutBack(kept_ahead_ + 1);
    blocks_open_ = 0;
    parameters_.clear();
    object_.clear();
    value_.clear();
    place_ = Place::kText;
    return true;
  }

  bool StepText(ReplyDelta& delta) {
    for (std::size_t at = std::min(buffer().find('<', plain_bytes()), buffer().size());
         at < buffer().size(); at = std::min(buffer().find('<', at + 1), buffer().size())) {
      const Likeness think_end = ThinkEndAt(at);
      if (think_end == Likeness::kWhole) {
        TakeText(at, delta);
        TakeThinkEnd();
        return true;
      }
      DsmlTag tag;
      const DsmlRead read = ReadDsmlTag(buffer().substr(at), tag);
      if (read == DsmlRead::kPartial || think_end == Likeness::kStart) {
        TakeText(at - FeedsBefore(at), delta);
        return false;
      }
      if (IsOpening(read, tag)) {
        kept_ahead_ = FeedsBefore(at);
        TakeText(at - kept_ahead_, delta);
        feeds_owed_ = has_text() ? kept_ahead_ : 0;
        KeepTaken(kept_ahead_);
        Open(tag);
        return true;
      }
    }
    TakeText(buffer().size() - FeedsBefore(buffer().size()), delta);
    return false;
  }

  // The line feeds in front of `at`, but for those that are text already.
  std::size_t FeedsBefore(std::size_t at) const {
    std::size_t feeds = 0;
    while (feeds < kFeedsMax && at > feeds + plain_bytes() && buffer()[at - feeds - 1] == '\n') {
      ++feeds;
    }
    return feeds;
  }

  // The opening tag of a block or of a call, at the start of the buffer.
  void Open(const DsmlTag& tag) {
    KeepTaken(tag.bytes);
    if (tag.kind == DsmlTag::Kind::kCalls) {
      ++blocks_open_;
      place_ = Place::kOpened;
      return;
    }
    call_name_ = tag.name;
    parameters_.clear();
    object_.clear();
    place_ = Place::kInCall;
  }

  // True where something else than white space comes.
  bool KeepSpaces() {
    KeepTaken(std::min(buffer().find_first_not_of(kReplySpaces), buffer().size()));
    return !buffer().empty();
  }

  bool StepOpened() {
    if (!KeepSpaces()) {
      return false;
    }
    DsmlTag tag;
    const DsmlRead read = ReadTag(tag);
    if (IsOpening(read, tag)) {  // of a call, or of the block once more
      Open(tag);
      return true;
    }
    return read != DsmlRead::kPartial && Fail();
  }

  // Whether a tag opens a block or a call.
  static bool IsOpening(DsmlRead read, const DsmlTag& tag) {
    return read == DsmlRead::kTag && !tag.closing && tag.kind != DsmlTag::Kind::kParameter;
  }

  // Behind a call: what is left of a reply that ends within a closing tag.
  bool IsHalfClosing() const {
    DsmlTag tag;
    return buffer().starts_with("</") && ReadTag(tag) == DsmlRead::kPartial;
  }

  bool StepCall(ReplyDelta& delta) {
    if (!KeepSpaces()) {
      return false;
    }
    DsmlTag tag;
    switch (ReadTag(tag)) {
      case DsmlRead::kPartial: return false;
      case DsmlRead::kNone:
        if (buffer().front() != '{' || !parameters_.empty() || !object_.empty()) {
          return Fail();
        }
        place_ = Place::kInObject;
        return true;
      case DsmlRead::kTag: break;
    }
    if (tag.kind == DsmlTag::Kind::kParameter) {
      if (!tag.closing && !object_.empty()) {
        return Fail();
      }
      KeepTaken(tag.bytes);
      if (!tag.closing) {
        value_name_ = tag.name;
        value_is_string_ = tag.is_string;
        value_.clear();
        place_ = Place::kInValue;
      }
      return true;
    }
    // Another tag ends the call, its own closing tag or not.
    const bool own = tag.closing && tag.kind != DsmlTag::Kind::kCalls;
    if (own) {
      Take(tag.bytes);
    }
    FinishCall(delta);
    return true;
  }

  // Takes what stands in front of the next tag.  False where there is none yet.
  bool TakeUpToTag(std::string& out) {
    bool found = false;
    const std::size_t at = FindDsmlTag(buffer(), 0, found);
    const std::string_view text = Take(at);
    out += text;
    Keep(text);
    return found;
  }

  bool StepObject() {
    if (!TakeUpToTag(object_)) {
      return false;
    }
    if (!IsJsonObject(object_)) {
      return Fail();
    }
    place_ = Place::kInCall;
    return true;
  }

  bool StepValue() {
    if (!TakeUpToTag(value_)) {
      return false;
    }
    DsmlTag tag;
    const DsmlRead read = ReadTag(tag);
    if (read != DsmlRead::kTag) {
      return read == DsmlRead::kNone && Fail();
    }
    const bool closes = tag.closing && tag.kind == DsmlTag::Kind::kParameter;
    if (!closes) {
      TrimUnclosed();
    }
    if (closes || (tag.closing && tag.kind == DsmlTag::Kind::kOther)) {
      KeepTaken(tag.bytes);
    }
    AddParameter();
    place_ = Place::kInCall;
    return true;
  }

  // A value without its closing tag ends in front of the line feed before the next one; some end
  // with a closing tag of XML's.
  void TrimUnclosed() {
    constexpr std::string_view kForeign = "</parameter>";
    if (value_.ends_with('\n')) {
      value_.pop_back();
    }
    if (value_.ends_with(kForeign)) {
      value_.resize(value_.size() - kForeign.size());
    }
  }

  void AddParameter() {
    std::string value;
    if (!value_is_string_ && ParsePython(value_, "value").ok()) {
      value = Trim(value_);
    } else {
      AppendPythonString(value_, value);
    }
    value_.clear();
    const auto known = std::find_if(parameters_.begin(), parameters_.end(),
                                    [&](const auto& other) { return other.name == value_name_; });
    if (known != parameters_.end()) {
      known->value = std::move(value);  // as a JSON object with a key twice is read
    } else {
      parameters_.push_back({.name = value_name_, .value = std::move(value)});
    }
  }

  void FinishCall(ReplyDelta& delta) {
    std::string arguments = "{";
    for (const Parameter& parameter : parameters_) {
      arguments += arguments.size() > 1 ? ", " : "";
      AppendPythonString(parameter.name, arguments);
      arguments += ": " + parameter.value;
    }
    arguments += "}";
    AddCall(delta, call_name_, object_.empty() ? arguments : std::string(Trim(object_)));
    parameters_.clear();
    object_.clear();
    Forget();
    place_ = Place::kBehindCall;
  }

  bool StepBehindCall() {
    Take(std::min(buffer().find_first_not_of(kReplySpaces), buffer().size()));
    DsmlTag tag;
    const DsmlRead read = ReadTag(tag);
    const Likeness think_end = buffer().empty() ? Likeness::kNone : ThinkEndAt(0);
    if (buffer().empty() || read == DsmlRead::kPartial || think_end == Likeness::kStart) {
      return false;
    }
    if (think_end == Likeness::kWhole) {
      feeds_owed_ = 0;
    }
    if (IsOpening(read, tag)) {
      kept_ahead_ = feeds_owed_;
      Keep(std::string(feeds_owed_, '\n'));
      Open(tag);
      return true;
    }
    const bool closes = place_ == Place::kBehindCall && read == DsmlRead::kTag && tag.closing &&
                        tag.kind != DsmlTag::Kind::kOther;
    if (!closes) {
      return GoOnAsText();
    }
    Take(tag.bytes);
    if (tag.kind == DsmlTag::Kind::kCalls) {
      blocks_open_ = std::max(blocks_open_ - 1, 0);
      place_ = blocks_open_ == 0 ? Place::kBehindBlock : Place::kBehindCall;
    } else {
      place_ = Place::kBehindCall;
    }
    return true;
  }

  // Text behind calls does not run into the text in front of them: the line feeds that were markup
  // come back.  True where there is text.
  bool GoOnAsText() {
    place_ = Place::kText;
    blocks_open_ = 0;
    if (buffer().empty()) {
      return false;
    }
    Keep(std::string(feeds_owed_, '\n'));
    PutBack(feeds_owed_);
    feeds_owed_ = 0;
    return true;
  }

  Place place_ = Place::kText;
  std::size_t kept_ahead_ = 0;  // bytes in front of the first tag that is kept
  int blocks_open_ = 0;         // opening tags of blocks whose closing tags have not come
  std::size_t feeds_owed_ = 0;  // line feeds between the text in front of calls and the next text
  std::string call_name_;
  std::vector<Parameter> parameters_;
  std::string object_;
  std::string value_name_;
  bool value_is_string_ = false;
  std::string value_;
};

}  // namespace

std::unique_ptr<ReplyParser> MakeReplyParserV32(bool thinking) {
  return std::make_unique<ReplyParserV32>(thinking);
}

}  // namespace dsa
