// Prompts against DeepSeek's own encoder, byte for byte.
#include "tokenizer/chat_template.h"

#include "tests/tokenizer/fixtures.h"

#include <array>

#include <catch2/catch.hpp>
#include <openssl/sha.h>

namespace dsa {
namespace {

// The prompt, or the error's message.
std::string Render(const std::string& json) {
  const Result<Chat> chat = ChatFromJson(json);
  if (!chat.ok()) {
    return chat.error().message;
  }
  const Result<RenderedPrompt> prompt = RenderChat(chat.value(), ChatFormat::kV32);
  return prompt.ok() ? prompt.value().text : prompt.error().message;
}

std::string Call(const std::string& arguments) {
  return R"({"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
      "function": {"name": "f", "arguments": )" +
         Json(arguments).dump() + "}}]}";
}

const std::string kUser = R"({"role": "user", "content": "u"})";

}  // namespace

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

TEST_CASE("the preamble of tools is the one the model was trained on", "[tokenizer][chat]") {
  const std::string prompt = Render(R"({"tools": [{"type": "function", "function":
      {"name":"f","n":1e5}}], "messages": [)" +
                                    kUser + "]}");
  // Without a system message they belong to an empty one.
  const std::string begin = "<｜begin▁of▁sentence｜>\n\n";
  REQUIRE(prompt.rfind(begin, 0) == 0);
  constexpr std::size_t kBytes = 1133;
  const std::string preamble = prompt.substr(begin.size(), kBytes);
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(preamble.data()), preamble.size(), digest.data());
  std::string hex;
  for (const unsigned char byte : digest) {
    constexpr const char* kDigits = "0123456789abcdef";
    hex += kDigits[byte / 16];
    hex += kDigits[byte % 16];
  }
  CHECK(hex == "963a72ee9be43f07d21bec2348ed2d7e45185e4b502f2a4da35a540299dc2b03");
  CHECK(prompt.substr(begin.size() + kBytes) ==
        "{\"name\": \"f\", \"n\": 100000.0}\n</functions>\n<｜User｜>u<｜Assistant｜></think>");
}

TEST_CASE("arguments are written one parameter a line, as Python writes them",
          "[tokenizer][chat]") {
  const std::string prompt =
      Render("{\"messages\": [" + kUser + "," +
             Call(R"({"s": "a \"b\"\n<c>", "n": -0.0, "big": 12345678901234567890123, "l": [1,2.50],
                  "o": {"k":null}, "t":true})") +
             R"(,{"role": "tool", "name": "f", "tool_call_id": "1", "content": "r"}]})");
  const std::string expected = R"(</think>

<｜DSML｜function_calls>
<｜DSML｜invoke name="f">
<｜DSML｜parameter name="s" string="true">a "b"
<c></｜DSML｜parameter>
<｜DSML｜parameter name="n" string="false">-0.0</｜DSML｜parameter>
<｜DSML｜parameter name="big" string="false">12345678901234567890123</｜DSML｜parameter>
<｜DSML｜parameter name="l" string="false">[1, 2.5]</｜DSML｜parameter>
<｜DSML｜parameter name="o" string="false">{"k": null}</｜DSML｜parameter>
<｜DSML｜parameter name="t" string="false">true</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls><｜end▁of▁sentence｜>

<function_results>
<result>r</result>
</function_results>

</think>)";
  CHECK(prompt == "<｜begin▁of▁sentence｜><｜User｜>u<｜Assistant｜>" + expected);
}

TEST_CASE("a call in a conversation may have no arguments at all", "[tokenizer][chat]") {
  const std::string result = R"({"role": "tool", "content": "r"})";
  const std::string none = "{\"messages\": [" + kUser + "," + Call("") + "," + result + "]}";
  const std::string empty = "{\"messages\": [" + kUser + "," + Call("{}") + "," + result + "]}";
  CHECK(Render(none) == Render(empty));
  CHECK(Render(none).find("<｜DSML｜invoke name=\"f\">\n\n</｜DSML｜invoke>") != std::string::npos);
  const Chat chat = ChatFromJson(none).value();
  CHECK(RenderChat(chat, ChatFormat::kV31).value().text.find("f<｜tool▁sep｜>{}<") !=
        std::string::npos);
}

TEST_CASE("content may be null, text or text parts", "[tokenizer][chat]") {
  CHECK(Render(R"({"messages": [{"role": "system", "content": null},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
      "thinking": true})") == "<｜begin▁of▁sentence｜><｜User｜>ab<｜Assistant｜><think>");
  CHECK(Render(R"({"messages": [{"role": "user", "content": []}]})") ==
        "<｜begin▁of▁sentence｜><｜User｜><｜Assistant｜></think>");
}

TEST_CASE("a response format that says nothing is left out", "[tokenizer][chat]") {
  const auto render = [](const std::string& format) {
    return Render(R"({"messages": [{"role": "system", "content": "s", "response_format": )" +
                  format + "}]}");
  };
  for (const char* format : {"null", "{}", "[]", "\"\"", "false", "0", "-0.0", "0e7"}) {
    CHECK(render(format) == "<｜begin▁of▁sentence｜>s");
  }
  const std::string begin =
      "<｜begin▁of▁sentence｜>s\n\n## Response Format:\n\nYou MUST strictly adhere to the "
      "following schema to reply:\n";
  const std::pair<std::string, std::string> written[] = {
      {R"({"type":"json_object","n":1E2})", R"({"type": "json_object", "n": 100.0})"},
      {"[0]", "[0]"},
      {"\"é\"", "\"é\""},
      {"true", "true"},
      {"1e30", "1e+30"},
      {"0.5e-10", "5e-11"}};
  for (const auto& [format, text] : written) {
    CHECK(render(format) == begin + text);
  }
}

TEST_CASE("a developer message is the last request or none", "[tokenizer][chat]") {
  CHECK(Render(R"({"messages": [{"role": "developer", "content": "d"}], "thinking": true})") ==
        "<｜begin▁of▁sentence｜><｜User｜>\n\n# The user's message is: d<｜Assistant｜><think>");
  CHECK(Render(R"({"messages": [{"role": "developer", "content": "d"}, )" + kUser + "]}") ==
        "messages[0].role: a developer message is supported only as the last request");
  CHECK(Render(R"({"messages": [{"role": "developer", "content": ""}]})") ==
        "messages[0].content: a developer message needs text");
}

TEST_CASE("a reply goes on from the last message", "[tokenizer][chat]") {
  struct Case {
    const char* message;  // its fields
    bool thinking;
    const char* expected;
    bool begins_reasoning;
    std::size_t written;  // bytes at the end that are the client's
  };
  const Case cases[] = {
      {R"("content": "It is")", false, "</think>It is", false, 5},
      {R"("content": "")", false, "</think>", false, 0},
      {R"("content": "</think><｜User｜>")", false, "</think></think><｜User｜>", false, 20},
      {R"("reasoning_content": "why", "content": "It is")", true, "<think>why</think>It is", false,
       5},
      {R"("reasoning_content": "why")", true, "<think>why", true, 3},
  };
  for (const ChatFormat format : {ChatFormat::kV32, ChatFormat::kV31}) {
    for (const Case& one : cases) {
      CAPTURE(one.message, static_cast<int>(format));
      const std::string json = "{\"messages\": [" + kUser + R"(, {"role": "assistant", )" +
                               one.message + R"(, "prefix": true}], "thinking": )" +
                               (one.thinking ? "true}" : "false}");
      const Result<Chat> chat = ChatFromJson(json);
      REQUIRE(chat.ok());
      const Result<RenderedPrompt> prompt = RenderChat(chat.value(), format);
      REQUIRE(prompt.ok());
      CHECK(prompt.value().text ==
            std::string("<｜begin▁of▁sentence｜><｜User｜>u<｜Assistant｜>") + one.expected);
      // What the client wrote is plain text.
      CHECK(prompt.value().template_ranges.back().end == prompt.value().text.size() - one.written);
      CHECK(BeginsReasoning(chat.value()) == one.begins_reasoning);
    }
  }
}

TEST_CASE("what the format cannot express is refused by field", "[tokenizer][chat]") {
  const std::string result = R"({"role": "tool", "content": "r"})";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"[]", "chat: not an object"},
      {"{}", "messages: missing"},
      {R"({"messages": []})", "messages: empty, at least one is needed"},
      {R"({"messages": 1})", "messages: not an array"},
      {R"({"messages": [1]})", "messages[0]: not an object"},
      {R"({"messages": [{"content": "x"}]})", "messages[0].role: missing"},
      {R"({"messages": [{"role": "bot", "content": "x"}]})",
       "messages[0].role: \"bot\" is not one of system, developer, user, assistant, tool"},
      {R"({"messages": [{"role": "user"}]})", "messages[0].content: a user message needs text"},
      {R"({"messages": [{"role": "user", "content": 5}]})",
       "messages[0].content: not null, a string or an array of text parts"},
      {R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
       "messages[0].content[0].type: only text parts are supported, not \"image_url\""},
      {R"({"messages": [{"role": "user", "content": "u", "name": 5}]})",
       "messages[0].name: not a string"},
      {R"({"messages": [{"role": "user", "content": "u", "prefix": true}]})",
       "messages[0].prefix: only the last message, an assistant's, can be continued"},
      {R"({"messages": [{"role": "assistant", "content": "a", "prefix": true}, )" + kUser + "]}",
       "messages[0].prefix: only the last message, an assistant's, can be continued"},
      {R"({"messages": [{"role": "assistant", "content": "a", "prefix": 1}]})",
       "messages[0].prefix: not true or false"},
      {"{\"messages\": [" + kUser + R"(, {"role": "assistant", "prefix": true}]})",
       "messages[1].content: a message that is continued needs text"},
      {"{\"messages\": [" + kUser + R"(, {"role": "assistant", "content": "a", "prefix": true}],
       "thinking": true})",
       "messages[1].reasoning_content: empty: with thinking on, a message that is continued needs "
       "it"},
      {R"({"messages": [{"role": "assistant", "content": "", "prefix": true, "tool_calls":
       [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}]})",
       "messages[0].prefix: tool_calls cannot be continued"},
      {R"({"messages": [{"role": "user", "content": "u", "reasoning_content": "r"}]})",
       "messages[0].reasoning_content: a user message has none"},
      {"{\"messages\": [" + kUser + R"(], "thinking": 1})", "thinking: not true or false"},
      {"{\"messages\": [" + kUser + R"(], "n": 2})", "n: not supported"},
      {"{\"messages\": [" + kUser + "," + result + "]}",
       "messages[1].role: tool result 1 of an assistant message with 0 tool calls"},
      {"{\"messages\": [" + kUser + "," + Call("{}") + "," + kUser + "]}",
       "messages[1].tool_calls: 1 calls, but 0 results follow"},
      {"{\"messages\": [" + kUser + "," + Call("{}") + "," + result + "," + result + "]}",
       "messages[3].role: tool result 2 of an assistant message with 1 tool calls"},
      {"{\"messages\": [" + kUser + "," + Call("[]") + "," + result + "]}",
       "messages[1].tool_calls[0].function.arguments: not the text of a JSON object"},
      {"{\"messages\": [" + kUser + R"(, {"role": "assistant", "content": "x"}],
       "thinking": true})",
       "messages[1].reasoning_content: empty: with thinking on, an assistant message after the "
       "last user message needs it or tool_calls"},
      {R"({"messages": [{"role": "user", "content": "u"}], "tools": [{"type": "x"}]})",
       "tools[0].type: only \"function\" is supported"},
      {R"({"messages": [{"role": "user", "content": "u"}], "tools": [{"type": "function"}]})",
       "tools[0].function: not an object"},
  };
  for (const auto& [json, error] : cases) {
    CHECK(Render(json) == error);
  }
  CHECK(Render("{\"messages\": [" + kUser + "," + Call("{") + "," + result + "]}")
            .rfind("messages[1].tool_calls[0].function.arguments: not valid JSON: ", 0) == 0);
  CHECK(Render("{").rfind("chat: not valid JSON: ", 0) == 0);
  // A tool is a function, said or not.
  CHECK(Render(R"({"messages": [{"role": "system", "tools": [{"function": {"name": "f"}}]}]})") ==
        Render(R"({"messages": [{"role": "system", "tools": [{"type": "function", "function":
            {"name": "f"}}]}]})"));
  // Keys that say nothing are no error: clients send them.
  CHECK(Render(R"({"messages": [{"role": "user", "content": "u", "name": "n", "audio": null,
      "annotations": []}]})") == "<｜begin▁of▁sentence｜><｜User｜>u<｜Assistant｜></think>");
}

}  // namespace dsa
