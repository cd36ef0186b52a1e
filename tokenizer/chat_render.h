// What the renderers of the chat formats share.  Within tokenizer/ only.
#pragma once

#include "tokenizer/chat_template.h"

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

namespace dsa::chat {

inline constexpr std::string_view kBegin = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEnd = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUser = "<｜User｜>";
inline constexpr std::string_view kAssistant = "<｜Assistant｜>";
inline constexpr std::string_view kThinkBegin = "<think>";
inline constexpr std::string_view kThinkEnd = "</think>";

// Builds a prompt and keeps account of which bytes the template wrote.
class PromptWriter final {
 public:
  void Template(std::string_view text);  // control tokens in it count
  void Content(std::string_view text);   // control tokens in it are plain text
  RenderedPrompt Take() { return std::move(prompt_); }

 private:
  RenderedPrompt prompt_;
};

// "messages[<index>].<field>: <what>"
Error MessageError(std::size_t index, std::string_view field, std::string_view what);

// Which result of how many the tool message at `index` is.  `number` is 1 for the first; `count` is
// 0 where no call message precedes.
struct ResultPlace {
  std::size_t number;
  std::size_t count;
};
ResultPlace PlaceOf(const Chat& chat, std::size_t index);

// What every format asks for: fields that belong to the role, and as many results as calls.
Status CheckChat(const Chat& chat);

// Of a chat that passed CheckChat.
Result<RenderedPrompt> RenderV32(const Chat& chat);
Result<RenderedPrompt> RenderV31(const Chat& chat);

}  // namespace dsa::chat
