// Characters completed byte by byte, and what stands in for bytes that make none.
#include "tokenizer/utf8.h"

#include "tests/tokenizer/fixtures.h"

#include <random>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

// As many U+FFFD as "?" in `pattern`.
std::string Replaced(const std::string& pattern) {
  std::string text;
  for (const char c : pattern) {
    text += c == '?' ? "\xef\xbf\xbd" : std::string(1, c);
  }
  return text;
}

std::string InPieces(const std::string& bytes, std::size_t first) {
  Utf8Stream stream;
  std::string out;
  stream.Push(std::string_view(bytes).substr(0, first), out);
  CHECK(IsValidUtf8(out));
  stream.Push(std::string_view(bytes).substr(first), out);
  CHECK(IsValidUtf8(out));
  stream.Finish(out);
  return out;
}

}  // namespace

TEST_CASE("invalid bytes are replaced as Python replaces them", "[tokenizer][utf8]") {
  // Each pair as bytes.decode("utf-8", "replace") gives it.
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a\x80z", "a?z"},
      {"\xc0\xaf", "??"},
      {"\xc2", "?"},
      {"\xc2z", "?z"},
      {"\xe0\x80\x80", "???"},
      {"\xe2\x82", "?"},
      {"\xe2\x82z", "?z"},
      {"\xe2\xe2\x82\xac", "?\xe2\x82\xac"},
      {"\xed\xa0\x80", "???"},
      {"\xf0\x80\x80\x80", "????"},
      {"\xf0\x90\x80", "?"},
      {"\xf0\x9f\x99\x82\xf0\x9f", "\xf0\x9f\x99\x82?"},
      {"\xf4\x90\x80\x80", "????"},
      {"\xf5\x80", "??"},
      {"\xff\xfe", "??"},
      {"\xf1\x80\x80\xe1\x80\xc2", "???"},
  };
  for (const auto& [bytes, pattern] : cases) {
    CAPTURE(bytes);
    CHECK(RepairUtf8(bytes) == Replaced(pattern));
    CHECK_FALSE(IsValidUtf8(bytes));
    for (std::size_t split = 0; split <= bytes.size(); ++split) {
      CHECK(InPieces(bytes, split) == Replaced(pattern));
    }
  }
}

TEST_CASE("random bytes give the same text in all pieces", "[tokenizer][utf8]") {
  std::mt19937 random(3);
  const std::string alphabet = "a\x80\x8f\x90\x9f\xa0\xbf\xc1\xc2\xe0\xe2\xed\xef\xf0\xf3\xf4\xf5";
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (std::size_t i = 0; i < random() % 12; ++i) {
      bytes += alphabet[random() % alphabet.size()];
    }
    const std::string whole = RepairUtf8(bytes);
    REQUIRE(IsValidUtf8(whole));
    REQUIRE((whole == bytes) == IsValidUtf8(bytes));
    for (std::size_t split = 0; split <= bytes.size(); ++split) {
      REQUIRE(InPieces(bytes, split) == whole);
    }
  }
}

TEST_CASE("a decoder never emits half a character", "[tokenizer][decoder]") {
  const Tokenizer& tokenizer = testing::DeepSeekTokenizer();
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    IncrementalDecoder decoder(tokenizer);
    std::string streamed;
    std::string bytes;
    for (int i = 0; i < 20; ++i) {
      // Every second token is a single byte: most characters are cut.
      const auto id = static_cast<std::int32_t>(i % 2 == 0 ? random() % 260 : random() % 129000);
      std::string delta;
      decoder.Push(TokenId{id}, delta);
      REQUIRE(IsValidUtf8(delta));
      streamed += delta;
      bytes += tokenizer.Bytes(TokenId{id});
    }
    decoder.Finish(streamed);
    REQUIRE(streamed == RepairUtf8(bytes));
  }
}

}  // namespace dsa
