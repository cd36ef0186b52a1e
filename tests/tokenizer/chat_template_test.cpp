// Prompts against DeepSeek's own encoder, byte for byte.
#include "tokenizer/chat_template.h"

#include "tests/tokenizer/fixtures.h"

#include <catch2/catch.hpp>

namespace dsa {

TEST_CASE("V3.2 prompts equal those of the model's own encoder", "[tokenizer][chat]") {
  const Json cases = testing::ReadJsonFixture("tokenizer/chat_cases.json");
  REQUIRE(cases.size() == 40);
  for (const Json& entry : cases) {
    const Json request = {{"messages", entry["messages"]}, {"thinking", entry["thinking"]}};
    CAPTURE(request.dump());
    const Result<Chat> chat = ChatFromJson(request.dump());
    REQUIRE(chat.ok());
    const Result<RenderedPrompt> prompt = RenderChat(chat.value(), ChatFormat::kV32);
    REQUIRE(prompt.ok());
    CHECK(prompt.value().text == entry["prompt"].get<std::string>());
  }
}

}  // namespace dsa
