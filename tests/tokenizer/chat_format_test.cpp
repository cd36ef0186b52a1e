// Which format a checkpoint speaks is read off its templates, wherever they lie, and never guessed.
#include "tokenizer/chat_format.h"

#include "tests/temporary_folder.h"
#include "tests/tokenizer/fixtures.h"

#include <filesystem>
#include <fstream>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

// What tells the templates of DeepSeek's models apart, and no more of them than that.
const std::string kLikeV31 =
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    "{{ '<｜User｜>' + content }}{{ '<｜Assistant｜></think>' }}"
    "{{ '<｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>' + arguments + '<｜tool▁call▁end｜>' }}";
const std::string kLikeV32 =
    "{% set dsml = '｜DSML｜' %}{{ '<' + dsml + 'function_calls>' }}"
    "{{ '<｜User｜>' + content + '<｜Assistant｜></think>' }}{% if thinking %}{% endif %}";
const std::string kLikeV4 =
    "{{ '<｜DSML｜tool_calls>' }}{{ '<｜User｜>' + content + '<｜Assistant｜></think>' }}";
const std::string kLikeR1 =
    "{{ '<｜User｜>' + content + '<｜Assistant｜><think>\\n' }}{{ content.split('</think>')[-1] }}";
const std::string kLikeR1Tools =
    "{{ '<｜User｜>' + content + '<｜Assistant｜>' }}{{ content.split('</think>')[-1] }}"
    "{# thinking #}{{ '<｜tool▁sep｜>' + name + '\\n```json\\n' + arguments }}";
const std::string kLikeV3 = "{{ '<｜User｜>' + content + '<｜Assistant｜>' }}";
const std::string kChatMl =
    "{{ '<|im_start|>user' + content }}{% if enable_thinking %}{{ '<think></think>' }}{% endif %}";

void Write(const testing::TemporaryFolder& folder, const std::string& name,
           const std::string& text) {
  std::ofstream(folder / name) << text;
}

// DeepSeek-V3's tokenizer with the tokens that its successors renamed.
const Tokenizer& ThinkingTokenizer() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    Json file = testing::ReadJsonFixture("deepseek_v3_tokenizer/tokenizer.json");
    for (Json& added : file["added_tokens"]) {
      if (added["id"] == 128798 || added["id"] == 128799) {
        added["content"] = added["id"] == 128798 ? "<think>" : "</think>";
      }
    }
    const testing::TemporaryFolder folder;
    Write(folder, "tokenizer.json", file.dump());
    return Tokenizer::Load(folder / "tokenizer.json").value();
  }();
  return *tokenizer;
}

ChatFormatChoice Find(const testing::TemporaryFolder& folder) {
  return FindChatFormat(folder.path(), ThinkingTokenizer(), ChatFormat::kV32).value();
}

}  // namespace

TEST_CASE("a template's marks say which format it writes", "[tokenizer][chat]") {
  CHECK(FormatOfTemplate(kLikeV31) == ChatFormat::kV31);
  CHECK(FormatOfTemplate(kLikeV32) == ChatFormat::kV32);
  for (const std::string& other :
       {kLikeV4, kLikeR1, kLikeR1Tools, kLikeV3, kChatMl, std::string(), std::string("{{ x }}")}) {
    CAPTURE(other);
    CHECK_FALSE(FormatOfTemplate(other).has_value());
  }
  for (const ChatFormat format : {ChatFormat::kV31, ChatFormat::kV32}) {
    CHECK(ParseChatFormat(ToString(format)) == format);
  }
  CHECK_FALSE(ParseChatFormat("v3").has_value());
}

TEST_CASE("a template counts wherever it lies", "[tokenizer][chat]") {
  const testing::TemporaryFolder folder;
  CHECK(Find(folder).format == ChatFormat::kV32);
  CHECK(Find(folder).reason == "without a chat template, as the model is published");
  const auto none = FindChatFormat(folder.path(), ThinkingTokenizer(), std::nullopt).value();
  CHECK_FALSE(none.format.has_value());
  CHECK(none.reason == "no chat template; choose by chat_format");

  Write(folder, "tokenizer_config.json", R"({"add_bos_token": true, "chat_template": null})");
  CHECK(Find(folder).format == ChatFormat::kV32);
  const auto config = [&](const Json& value) {
    Write(folder, "tokenizer_config.json", Json{{"chat_template", value}}.dump());
  };
  config(kLikeV31);
  CHECK(Find(folder).format == ChatFormat::kV31);
  CHECK(Find(folder).reason == "tokenizer_config.json's chat_template has its marks");
  config(kLikeR1);
  CHECK_FALSE(Find(folder).format.has_value());
  CHECK(Find(folder).reason ==
        "tokenizer_config.json's chat_template is neither v3.1 nor v3.2, and no other is run; "
        "choose by chat_format");
  // Named ones: the default, or the only one.
  const auto named = [](const std::string& name, const std::string& text) {
    return Json{{"name", name}, {"template", text}};
  };
  config(Json::array({named("tool_use", kLikeR1), named("default", kLikeV31)}));
  CHECK(Find(folder).format == ChatFormat::kV31);
  config(Json::array({named("tool_use", kLikeV31)}));
  CHECK(Find(folder).format == ChatFormat::kV31);
  config(Json::array({named("rag", kLikeV31), named("tool_use", kLikeV31)}));
  CHECK_FALSE(Find(folder).format.has_value());
  config(Json::array());
  CHECK_FALSE(Find(folder).format.has_value());
  config(Json{{"tool_use", kLikeR1}, {"default", kLikeV31}});
  CHECK(Find(folder).format == ChatFormat::kV31);
  config(Json{{"rag", kLikeV31}, {"tool_use", kLikeV31}});
  CHECK_FALSE(Find(folder).format.has_value());
  // Files that libraries write beside it count where it says nothing.
  config(nullptr);
  Write(folder, "chat_template.json", Json{{"chat_template", kChatMl}}.dump());
  CHECK_FALSE(Find(folder).format.has_value());
  CHECK(Find(folder).reason.starts_with("chat_template.json's chat_template is neither"));
  config(kLikeV31);
  CHECK(Find(folder).format == ChatFormat::kV31);
  config(nullptr);
  std::filesystem::remove(folder / "chat_template.json");
  std::filesystem::create_directory(folder / "additional_chat_templates");
  CHECK(Find(folder).format == ChatFormat::kV32);  // as without one
  Write(folder, "additional_chat_templates/tool_use.jinja", kLikeV31);
  CHECK(Find(folder).format == ChatFormat::kV31);
  Write(folder, "additional_chat_templates/rag.jinja", kLikeV31);
  CHECK_FALSE(Find(folder).format.has_value());
  CHECK(Find(folder).reason.starts_with("additional_chat_templates is neither"));
  // A file of its own goes before the configuration.
  config(kChatMl);
  Write(folder, "chat_template.jinja", kLikeV31);
  CHECK(Find(folder).format == ChatFormat::kV31);
  CHECK(Find(folder).reason == "chat_template.jinja has its marks");
  Write(folder, "chat_template.jinja", "");
  CHECK_FALSE(Find(folder).format.has_value());
}

TEST_CASE("a format without its tokens, and files that cannot be read", "[tokenizer][chat]") {
  const testing::TemporaryFolder folder;
  Write(folder, "chat_template.jinja", kLikeV31);
  // V3's own tokenizer has no think tokens: its format is another one.
  const ChatFormatChoice choice =
      FindChatFormat(folder.path(), testing::DeepSeekTokenizer(), ChatFormat::kV32).value();
  CHECK_FALSE(choice.format.has_value());
  CHECK(choice.reason == "the tokenizer has no token <think>");
  CHECK(CheckChatTokens(ThinkingTokenizer()).ok());
  const testing::TemporaryFolder broken;
  for (const char* text :
       {"{", "[]", R"({"chat_template": 5})", R"({"chat_template": [5]})",
        R"({"chat_template": [{"name": "default"}]})", R"({"chat_template": {"default": 5}})"}) {
    CAPTURE(text);
    Write(broken, "tokenizer_config.json", text);
    const auto found = FindChatFormat(broken.path(), ThinkingTokenizer(), ChatFormat::kV32);
    REQUIRE_FALSE(found.ok());
    CHECK(found.error().message.starts_with(broken / "tokenizer_config.json"));
  }
}

TEST_CASE("the vector on the model's card", "[tokenizer][chat]") {
  Chat chat;
  chat.messages.push_back({.role = ChatRole::kUser, .content = "hello"});
  chat.messages.push_back({.role = ChatRole::kAssistant, .content = "Hello! I am DeepSeek."});
  chat.messages.push_back({.role = ChatRole::kUser, .content = "1+1=?"});
  chat.thinking = true;
  const RenderedPrompt prompt = RenderChat(chat, ChatFormat::kV32).value();
  CHECK(testing::Values(ThinkingTokenizer().EncodeWithAdded(prompt.text, prompt.template_ranges)) ==
        std::vector<std::int32_t>{0,      128803, 33310, 128804, 128799, 19923,  3,
                                  342,    1030,   22651, 4374,   1465,   16,     1,
                                  128803, 19,     13,    19,     127252, 128804, 128798});
}

}  // namespace dsa
