#include "tokenizer/reply_decoder.h"

#include "tokenizer/chat_render.h"

#include <algorithm>
#include <array>

namespace dsa {
namespace {

constexpr std::array kToolMarks = {kCallsBegin, kCallsEnd, kCallBegin, kCallEnd, kToolSeparator};

}  // namespace

void ReplyDecoder::Push(TokenId id, std::string& out) {
  if (!tokenizer_->IsAdded(id)) {
    decoder_.Push(id, out);
    return;
  }
  const std::string_view text = tokenizer_->Bytes(id);
  if (tokenizer_->IsSpecial(id) || text == chat::kUser || text == chat::kAssistant) {
    return;
  }
  const bool mark = format_ == ChatFormat::kV31 &&
                    std::find(kToolMarks.begin(), kToolMarks.end(), text) != kToolMarks.end();
  if (!mark) {
    decoder_.Push(id, out);
    return;
  }
  decoder_.Finish(out);  // a character that was begun ends here
  out += kMarkBegin;
  out += text;
  out += kMarkEnd;
}

}  // namespace dsa
