// UTF-8: checking, repairing, and decoding byte by byte.  Invalid bytes become U+FFFD, one for each
// maximal start of a character (Unicode 15, section 3.9, "substitution of maximal subparts"): what
// Python's bytes.decode("utf-8", "replace") writes.  Pure functions; thread-safe.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace dsa {

bool IsValidUtf8(std::string_view text);

// `text` with U+FFFD for what is invalid.
std::string RepairUtf8(std::string_view text);

// The character at `offset` of valid text; `offset` moves behind it.
char32_t DecodeUtf8(std::string_view text, std::size_t& offset);

void AppendUtf8(char32_t character, std::string& out);

// Turns bytes, in pieces of any size, into whole characters.  Plain data, no allocation.
class Utf8Stream final {
 public:
  // Appends what `bytes` completes: valid UTF-8.  Holds back at most 3 bytes.
  void Push(std::string_view bytes, std::string& out);
  // Appends U+FFFD for a character that was begun.
  void Finish(std::string& out);

 private:
  bool Continues(unsigned char byte) const;

  char pending_[4] = {};    // the bytes of a character that are there so far
  std::size_t count_ = 0;   // of them
  std::size_t length_ = 0;  // of the character once complete
};

}  // namespace dsa
