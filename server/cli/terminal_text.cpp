#include "server/cli/terminal_text.h"

#include "tokenizer/utf8.h"

#include <unistd.h>

namespace dsa {

std::string WithoutControls(std::string_view text) {
  constexpr char32_t kPictures = 0x2400;  // of U+0000 and those behind it
  constexpr char32_t kDelete = 0x7F;
  constexpr char32_t kDeletePicture = 0x2421;
  constexpr char32_t kUnknown = 0xFFFD;  // for U+0080 to U+009F, which have no pictures
  const std::string valid = RepairUtf8(text);
  std::string shown;
  for (std::size_t offset = 0; offset < valid.size();) {
    const char32_t character = DecodeUtf8(valid, offset);
    if (character < 0x20 && character != '\t' && character != '\n') {
      AppendUtf8(kPictures + character, shown);
    } else if (character == kDelete) {
      AppendUtf8(kDeletePicture, shown);
    } else if (character > kDelete && character < 0xA0) {
      AppendUtf8(kUnknown, shown);
    } else {
      AppendUtf8(character, shown);
    }
  }
  return shown;
}

std::string ForDescriptor(std::string_view text, int descriptor, bool raw) {
  return raw || isatty(descriptor) != 1 ? std::string(text) : WithoutControls(text);
}

}  // namespace dsa
