// HPACK's shape: what honest encoders write passes however it is cut, padding does not.
#include "server/net/header_shape.h"

#include <string>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

constexpr std::uint32_t kStringBytesMax = 1000;

bool Passes(const std::string& block, std::size_t piece_bytes) {
  HeaderShape shape;
  shape.Begin(kStringBytesMax);
  for (std::size_t begin = 0; begin < block.size(); begin += piece_bytes) {
    if (!shape.Feed(std::string_view(block).substr(begin, piece_bytes))) {
      return false;
    }
  }
  return true;
}

// The same answer for every way to cut it.
bool PassesAnyhow(const std::string& block) {
  const bool whole = Passes(block, block.size());
  for (std::size_t piece = 1; piece < block.size(); ++piece) {
    CHECK(Passes(block, piece) == whole);
  }
  return whole;
}

std::string Long(std::size_t size) {  // of 127 to 16510 bytes: its length, and as many letters
  std::string text = "\x7f";
  text += static_cast<char>(((size - 127) & 0x7f) | 0x80);
  text += static_cast<char>((size - 127) >> 7);
  return text + std::string(size, 'v');
}

TEST_CASE("what the fields of RFC 7541 look like passes", "[net][hpack]") {
  using namespace std::string_literals;
  CHECK(PassesAnyhow("\x82\x86\x84\xff\x80\x01"s));  // indexed, one over 127
  CHECK(
      PassesAnyhow("\x40\x0a"
                   "custom-key\x0d"
                   "custom-header"s));                                     // kept, new name
  CHECK(PassesAnyhow("\x04\x0c/sample/path\x0f\x10\x01x\x00\x01n\x00"s));  // not kept
  CHECK(PassesAnyhow("\x10\x08password\x06secret\x1f\x21\x00"s));          // never kept
  CHECK(PassesAnyhow("\x3f\xe1\x1f\x20\x82"s));                            // sizes of the table
  CHECK(PassesAnyhow("\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff\x82"s));  // Huffman
  CHECK(PassesAnyhow("\x40\x01x"s + Long(kStringBytesMax) + "\x82"));
  CHECK(PassesAnyhow("\x00\x00\x00\x82"s));  // an empty name and an empty value
}

TEST_CASE("what only costs does not", "[net][hpack]") {
  using namespace std::string_literals;
  CHECK(PassesAnyhow("\x7f\x80\x80\x80\x00\x00"s));
  CHECK_FALSE(PassesAnyhow("\x7f\x80\x80\x80\x80\x00"s));
  CHECK_FALSE(PassesAnyhow("\xff\x80\x80\x80\x80\x00"s));
  CHECK_FALSE(PassesAnyhow("\x00\x01x\x7f\x80\x80\x80\x80\x00"s));
  CHECK_FALSE(PassesAnyhow("\x00\x01x"s + Long(kStringBytesMax + 1)));
  CHECK_FALSE(PassesAnyhow("\x00"s + Long(kStringBytesMax + 1)));
  CHECK_FALSE(PassesAnyhow("\x00\x7f\xff\xff\xff\x7f"s));
  // A string's bytes are none of its business.
  CHECK(PassesAnyhow("\x00\x01x\x08\xff\x80\x80\x80\x80\x80\x80\x80\x82"s));
}

}  // namespace
}  // namespace dsa
