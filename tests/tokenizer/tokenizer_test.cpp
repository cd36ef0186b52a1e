// Ids against the reference library's, byte for byte, with DeepSeek's own tokenizer.json.
#include "tokenizer/tokenizer.h"

#include "tests/processor_time.h"
#include "tests/tokenizer/fixtures.h"

#include <algorithm>
#include <span>
#include <string>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::Decode;
using testing::DeepSeekTokenizer;
using testing::Values;

using Ids = std::vector<std::int32_t>;

Ids Encode(std::string_view text) {
  return Values(DeepSeekTokenizer().Encode(text));
}

}  // namespace

TEST_CASE("ids equal the reference library's and decode to the text", "[tokenizer]") {
  const Json cases = testing::ReadJsonFixture("tokenizer/tokenizer_cases.json");
  REQUIRE(cases.size() == 257);
  for (const Json& entry : cases) {
    const auto text = entry["text"].get<std::string>();
    CAPTURE(text);
    const std::vector<TokenId> ids = DeepSeekTokenizer().EncodeWithAdded(text);
    CHECK(Values(ids) == entry["ids"].get<Ids>());
    CHECK(Decode(DeepSeekTokenizer(), ids) == entry["decoded"].get<std::string>());
  }
}

TEST_CASE("the golden vectors of DeepSeek's tokenizer", "[tokenizer]") {
  CHECK(Encode("12345678") == Ids{6895, 18009, 2597});
  CHECK(Encode("The quick brown fox, 12345 jumps!\n\nOver  the lazy dog.") ==
        Ids{671, 4787, 13769, 46012, 14, 223, 6895, 1883, 54994, 2596, 7853, 223, 270, 41638, 6397,
            16});
  CHECK(Encode("中文测试：你好，世界！2025年") ==
        Ids{21134, 10251, 768, 30594, 303, 3427, 1175, 939, 23, 695});
  CHECK(Encode("    def f(x):\n\treturn x**2\r\n") ==
        Ids{361, 1351, 285, 4042, 3395, 5562, 1527, 666, 20, 204, 201});
  CHECK(Encode("don't I'll we've") == Ids{20385, 1664, 342, 5922, 579, 5270});
  CHECK(Encode("   \n  x") == Ids{14320, 223, 1527});
  CHECK(Encode("x=1234567890.12") == Ids{90, 31, 6895, 18009, 25744, 18, 16, 736});
  CHECK(Encode("\n") == Ids{201});
  CHECK(Encode("\n\n") == Ids{271});
  CHECK(Encode("\n\n\n") == Ids{6328});
  CHECK(Encode("").empty());
}

TEST_CASE("encoding at most so many tokens is encoding, or nothing", "[tokenizer]") {
  const Tokenizer& tokenizer = DeepSeekTokenizer();
  const std::string text =
      "Grüße, 世界! <｜User｜> 12345 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n\n";
  for (const bool added : {false, true}) {
    CAPTURE(added);
    const TextRange all{.begin = 0, .end = text.size()};
    const std::span<const TextRange> ranges(&all, added ? 1 : 0);
    const auto whole = tokenizer.EncodeWithAdded(text, ranges);
    for (std::size_t limit = 0; limit < whole.size() + 3; ++limit) {
      CAPTURE(limit);
      const auto ids = tokenizer.EncodeAtMost(text, ranges, limit);
      REQUIRE(ids.has_value() == (limit >= whole.size()));
      CHECK((!ids || *ids == whole));
    }
  }
  // No token is longer than is said, and one is as long.
  std::size_t longest = 0;
  for (std::int32_t id = 0; id < tokenizer.size(); ++id) {
    longest = std::max(longest, tokenizer.Bytes(TokenId{id}).size());
  }
  CHECK(tokenizer.longest_token_bytes() == longest);
}

TEST_CASE("what lies far behind the last token that may be is not encoded", "[tokenizer]") {
#ifdef __SANITIZE_ADDRESS__
  constexpr std::size_t kBytes = 1 << 20;
#else
  constexpr std::size_t kBytes = 4 << 20;
#endif
  constexpr std::size_t kTokensMax = 1000;
  // Many pieces of text, and one that is as long as all of it.
  for (const char* unit : {"word and ", "1234567", "世界", "ab"}) {
    CAPTURE(unit);
    std::string text;
    while (text.size() < kBytes) {
      text += unit;
    }
    const Tokenizer& tokenizer = DeepSeekTokenizer();
    const double whole_s =
        testing::ProcessorSecondsOf([&] { CHECK(tokenizer.Encode(text).size() > kTokensMax); });
    const double part_s = testing::ProcessorSecondsOf(
        [&] { CHECK_FALSE(tokenizer.EncodeAtMost(text, {}, kTokensMax).has_value()); });
    CHECK(part_s < whole_s / 2);
  }
}

TEST_CASE("sizes and added tokens of DeepSeek's file", "[tokenizer]") {
  const Tokenizer& tokenizer = DeepSeekTokenizer();
  CHECK(tokenizer.size() == 128815);
  CHECK(tokenizer.AddedToken("<｜begin▁of▁sentence｜>") == TokenId{0});
  CHECK(tokenizer.AddedToken("<｜tool▁sep｜>") == TokenId{128814});
  CHECK(tokenizer.AddedToken("<|EOT|>") == TokenId{128805});
  CHECK_FALSE(tokenizer.AddedToken("</think>").has_value());
  CHECK_FALSE(tokenizer.AddedToken("hello").has_value());
  CHECK(tokenizer.IsAdded(TokenId{2}));
  CHECK_FALSE(tokenizer.IsAdded(TokenId{3}));
  CHECK(tokenizer.Bytes(TokenId{201}) == "\n");
  CHECK(tokenizer.Bytes(TokenId{128803}) == "<｜User｜>");
  CHECK(tokenizer.Bytes(TokenId{128815}).empty());
  CHECK(tokenizer.Bytes(TokenId{-1}).empty());
}

}  // namespace dsa
