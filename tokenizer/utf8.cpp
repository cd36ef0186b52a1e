#include "tokenizer/utf8.h"

#include <cstdint>
#include <cstring>

namespace dsa {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

// Bytes of the character that `lead` opens; 0 where it opens none.
std::size_t LengthOf(unsigned char lead) {
  if (lead < 0x80) {
    return 1;
  }
  if (lead < 0xc2 || lead > 0xf4) {
    return 0;
  }
  return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

// Whether `byte` may follow `lead` directly: no overlong forms, surrogates or values above
// 0x10ffff.
bool MaySecond(unsigned char lead, unsigned char byte) {
  const unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  return byte >= low && byte <= high;
}

constexpr std::uint64_t kHighBits = 0x8080808080808080U;

template <typename Word>
std::uint64_t LoadWord(const char* bytes) {
  Word word = 0;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

// The end of the ASCII run at `offset`, eight bytes at a time.
std::size_t SkipAscii(std::string_view text, std::size_t offset) {
  while (offset + sizeof(std::uint64_t) <= text.size()) {
    if ((LoadWord<std::uint64_t>(text.data() + offset) & kHighBits) != 0) {
      break;
    }
    offset += sizeof(std::uint64_t);
  }
  while (offset < text.size() && static_cast<unsigned char>(text[offset]) < 0x80) {
    ++offset;
  }
  return offset;
}

// Quick for the few bytes of a token: its first and last four, or two, overlap.
bool IsAscii(std::string_view text) {
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  if (text.size() > sizeof(std::uint64_t)) {
    return SkipAscii(text, 0) == text.size();
  }
  std::uint64_t bytes = 0;
  if (text.size() >= 4) {
    bytes = LoadWord<std::uint32_t>(begin) | LoadWord<std::uint32_t>(end - 4);
  } else if (text.size() >= 2) {
    bytes = LoadWord<std::uint16_t>(begin) | LoadWord<std::uint16_t>(end - 2);
  } else if (text.size() == 1) {
    bytes = static_cast<unsigned char>(*begin);
  }
  return (bytes & kHighBits) == 0;
}

}  // namespace

bool IsValidUtf8(std::string_view text) {
  std::size_t offset = SkipAscii(text, 0);
  while (offset < text.size()) {
    const auto lead = static_cast<unsigned char>(text[offset]);
    const std::size_t length = LengthOf(lead);
    if (length < 2 || offset + length > text.size() ||
        !MaySecond(lead, static_cast<unsigned char>(text[offset + 1]))) {
      return false;
    }
    for (std::size_t i = 2; i < length; ++i) {
      if ((static_cast<unsigned char>(text[offset + i]) & 0xc0) != 0x80) {
        return false;
      }
    }
    offset = SkipAscii(text, offset + length);
  }
  return true;
}

std::string RepairUtf8(std::string_view text) {
  std::string repaired;
  repaired.reserve(text.size());
  Utf8Stream stream;
  stream.Push(text, repaired);
  stream.Finish(repaired);
  return repaired;
}

char32_t DecodeUtf8(std::string_view text, std::size_t& offset) {
  const auto lead = static_cast<unsigned char>(text[offset++]);
  const std::size_t length = LengthOf(lead);
  if (length < 2) {
    return lead;
  }
  char32_t character = lead & (0x7fU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    character = character << 6 | (static_cast<unsigned char>(text[offset++]) & 0x3fU);
  }
  return character;
}

void AppendUtf8(char32_t character, std::string& out) {
  const auto push = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (character < 0x80) {
    push(character);
  } else if (character < 0x800) {
    push(0xc0 | character >> 6);
    push(0x80 | (character & 0x3f));
  } else if (character < 0x10000) {
    push(0xe0 | character >> 12);
    push(0x80 | (character >> 6 & 0x3f));
    push(0x80 | (character & 0x3f));
  } else {
    push(0xf0 | character >> 18);
    push(0x80 | (character >> 12 & 0x3f));
    push(0x80 | (character >> 6 & 0x3f));
    push(0x80 | (character & 0x3f));
  }
}

bool Utf8Stream::Continues(unsigned char byte) const {
  return count_ == 1 ? MaySecond(static_cast<unsigned char>(pending_[0]), byte)
                     : (byte & 0xc0) == 0x80;
}

void Utf8Stream::Push(std::string_view bytes, std::string& out) {
  if (count_ == 0 && (IsAscii(bytes) || IsValidUtf8(bytes))) {  // as nearly every token is
    out.append(bytes);
    return;
  }
  for (const char value : bytes) {
    const auto byte = static_cast<unsigned char>(value);
    if (count_ > 0 && !Continues(byte)) {
      out += kReplacement;  // one for all bytes that could have begun the character
      count_ = 0;
    }
    if (count_ == 0) {
      length_ = LengthOf(byte);
      if (length_ == 0) {
        out += kReplacement;
        continue;
      }
    }
    pending_[count_++] = value;
    if (count_ == length_) {
      out.append(pending_, count_);
      count_ = 0;
    }
  }
}

void Utf8Stream::Finish(std::string& out) {
  if (count_ > 0) {
    out += kReplacement;
    count_ = 0;
  }
}

}  // namespace dsa
