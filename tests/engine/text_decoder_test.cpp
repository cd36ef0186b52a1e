#include "server/engine/text_decoder.h"

#include "tests/paths.h"
#include "tokenizer/tokenizer.h"

#include <memory>
#include <string>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

TEST_CASE("The tokenizer's decoder gives whole characters within its bound", "[engine][decoder]") {
  const auto tokenizer =
      Tokenizer::Load(testing::SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json"));
  REQUIRE(tokenizer.ok());
  const auto factory = MakeTextDecoderFactory(*tokenizer.value());
  const std::string text = "Größe: 世界 \U0001F9E9 \U00010348 end";
  const auto ids = tokenizer.value()->Encode(text);
  const auto decoder = factory->Make();
  std::string all;
  for (const TokenId id : ids) {
    std::string piece;
    decoder->Push(id, piece);
    CHECK(static_cast<std::int64_t>(piece.size()) <= factory->text_bytes_max());
    CHECK((piece.empty() || (static_cast<unsigned char>(piece[0]) & 0xC0U) != 0x80U));
    all += piece;
  }
  decoder->Finish(all);
  CHECK(all == text);
}

TEST_CASE("A reply cut within a character shows one replacement", "[engine][decoder]") {
  const auto tokenizer =
      Tokenizer::Load(testing::SourcePath("tests/fixtures/deepseek_v3_tokenizer/tokenizer.json"));
  REQUIRE(tokenizer.ok());
  const auto factory = MakeTextDecoderFactory(*tokenizer.value());
  const auto ids = tokenizer.value()->Encode("\U00010348");
  REQUIRE(ids.size() > 1);
  const auto decoder = factory->Make();
  std::string text;
  decoder->Push(ids[0], text);
  CHECK(text.empty());
  decoder->Finish(text);
  CHECK(text == "\uFFFD");
}

}  // namespace
}  // namespace dsa
