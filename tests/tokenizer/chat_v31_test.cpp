// Prompts of V3.1, V3.1-Terminus and V3.2-Exp, written down from the template's description.
#include "tests/tokenizer/fixtures.h"
#include "tokenizer/chat_template.h"

#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

// [B] [E] [U] [A] [t] [/t] and the tool marks stand for the control tokens.
std::string Expand(std::string text) {
  const std::vector<std::pair<std::string, std::string>> marks = {
      {"[B]", "<｜begin▁of▁sentence｜>"},
      {"[E]", "<｜end▁of▁sentence｜>"},
      {"[U]", "<｜User｜>"},
      {"[A]", "<｜Assistant｜>"},
      {"[t]", "<think>"},
      {"[/t]", "</think>"},
      {"[cs]", "<｜tool▁calls▁begin｜>"},
      {"[/cs]", "<｜tool▁calls▁end｜>"},
      {"[c]", "<｜tool▁call▁begin｜>"},
      {"[/c]", "<｜tool▁call▁end｜>"},
      {"[s]", "<｜tool▁sep｜>"},
      {"[o]", "<｜tool▁output▁begin｜>"},
      {"[/o]", "<｜tool▁output▁end｜>"},
  };
  for (const auto& [mark, token] : marks) {
    for (std::size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at)) {
      text.replace(at, mark.size(), token);
    }
  }
  return text;
}

Json Say(const std::string& role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

Json Call(const Json& content, const std::vector<std::pair<std::string, std::string>>& calls) {
  Json message = {{"role", "assistant"}, {"content", content}, {"tool_calls", Json::array()}};
  for (const auto& [name, arguments] : calls) {
    message["tool_calls"].push_back({{"id", "c"},
                                     {"type", "function"},
                                     {"function", {{"name", name}, {"arguments", arguments}}}});
  }
  return message;
}

std::string Render(const std::vector<Json>& messages, bool thinking) {
  const Json request = {{"messages", messages}, {"thinking", thinking}};
  const Result<Chat> chat = ChatFromJson(request.dump());
  if (!chat.ok()) {
    return chat.error().message;
  }
  const Result<RenderedPrompt> prompt = RenderChat(chat.value(), ChatFormat::kV31);
  return prompt.ok() ? prompt.value().text : prompt.error().message;
}

struct Golden {
  std::vector<Json> messages;
  bool thinking;
  std::string expected;
};

}  // namespace

TEST_CASE("V3.1 prompts of plain conversations", "[tokenizer][chat]") {
  const std::vector<Golden> goldens = {
      {{Say("user", "Hello")}, false, "[B][U]Hello[A][/t]"},
      {{Say("user", "Hello")}, true, "[B][U]Hello[A][t]"},
      {{Say("user", "")}, false, "[B][U][A][/t]"},
      {{Say("system", "You are helpful."), Say("user", "1+1?"), Say("assistant", "2"),
        Say("user", "2+2?")},
       true,
       "[B]You are helpful.[U]1+1?[A][/t]2[E][U]2+2?[A][t]"},
      {{Say("system", "You are helpful."), Say("user", "1+1?"), Say("assistant", "2"),
        Say("user", "2+2?")},
       false,
       "[B]You are helpful.[U]1+1?[A][/t]2[E][U]2+2?[A][/t]"},
      {{Say("system", "S")}, true, "[B]S[A][t]"},
      {{Say("system", "S")}, false, "[B]S[A][/t]"},
      // System messages are collected, wherever they stand.
      {{Say("system", "a"), Say("user", "u"), Say("system", "b")}, false, "[B]a\n\nb[U]u[A][/t]"},
      {{Say("user", "u"), Say("system", "late"), Say("assistant", "x"), Say("user", "v")},
       true,
       "[B]late[U]u[A][/t]x[E][U]v[A][t]"},
      {{Say("system", ""), Say("system", "b"), Say("user", "u")}, false, "[B]\n\nb[U]u[A][/t]"},
      // Of an answer with reasoning in its text only what follows the first end mark is kept.
      {{Say("user", "u"), Say("assistant", "why</think>because</think>so"), Say("user", "v")},
       true,
       "[B][U]u[A][/t]because</think>so[E][U]v[A][t]"},
      {{Say("user", "u"), Say("user", "v")}, false, "[B][U]u[U]v[A][/t]"},
      {{Say("user", "u"), Say("assistant", "x"), Say("assistant", "y")},
       false,
       "[B][U]u[A][/t]x[E]y[E][A][/t]"},
      {{Say("assistant", "x"), Say("user", "u")}, false, "[B]x[E][U]u[A][/t]"},
      {{Say("user", "u"), Say("assistant", "x")}, true, "[B][U]u[A][/t]x[E][A][t]"},
  };
  for (const Golden& golden : goldens) {
    CHECK(Render(golden.messages, golden.thinking) == Expand(golden.expected));
  }
  Json reasoned = Say("assistant", "x");
  reasoned["reasoning_content"] = "never kept";
  CHECK(Render({Say("user", "u"), reasoned, Say("user", "v")}, true) ==
        Expand("[B][U]u[A][/t]x[E][U]v[A][t]"));
}

TEST_CASE("V3.1 prompts of conversations with tool calls", "[tokenizer][chat]") {
  const std::string arguments = R"({"city": "Paris", "days": 2})";
  const std::string call = "[cs][c]get_weather[s]" + arguments + "[/c][/cs][E]";
  const Json paris = Call(nullptr, {{"get_weather", arguments}});
  const std::vector<Golden> goldens = {
      {{Say("system", "S"), Say("user", "Weather in Paris?"), paris, Say("tool", "Sunny")},
       false,
       "[B]S[U]Weather in Paris?[A][/t]" + call + "[o]Sunny[/o]"},
      {{Say("user", "W?"), paris, Say("tool", "Sunny")},
       true,
       "[B][U]W?[A][/t]" + call + "[o]Sunny[/o]"},
      {{Say("system", "S"), Say("user", "W?"), paris, Say("tool", "Sunny"),
        Say("assistant", "It is sunny."), Say("user", "Thanks")},
       false,
       "[B]S[U]W?[A][/t]" + call + "[o]Sunny[/o]It is sunny.[E][U]Thanks[A][/t]"},
      // Behind a tool result the text is kept whole.
      {{Say("user", "W?"), paris, Say("tool", "r"), Say("assistant", "a</think>b"),
        Say("user", "T")},
       true,
       "[B][U]W?[A][/t]" + call + "[o]r[/o]a</think>b[E][U]T[A][t]"},
      {{Say("user", "W?"), Call("Let me see.", {{"a", "{}"}, {"b", "{ \"k\":1.50 }"}}),
        Say("tool", "1"), Say("tool", "2")},
       false,
       "[B][U]W?[A][/t]Let me see.[cs][c]a[s]{}[/c][c]b[s]{ \"k\":1.50 }[/c][/cs][E]"
       "[o]1[/o][o]2[/o]"},
      {{Say("user", "W?"), paris, Say("tool", "r"), paris, Say("tool", "q")},
       false,
       "[B][U]W?[A][/t]" + call + "[o]r[/o]" + call + "[o]q[/o]"},
      {{Say("system", "S"), paris, Say("tool", "r")}, false, "[B]S[A][/t]" + call + "[o]r[/o]"},
      {{paris, Say("tool", "r")}, false, "[B]" + call + "[o]r[/o]"},
      {{Say("user", "W?"), paris}, false, "[B][U]W?[A][/t]" + call + "[A][/t]"},
  };
  for (const Golden& golden : goldens) {
    CHECK(Render(golden.messages, golden.thinking) == Expand(golden.expected));
  }
}

TEST_CASE("V3.1 tools stand behind the system prompt as on the model card", "[tokenizer][chat]") {
  Json system = Say("system", "S");
  system["tools"] = Json::parse(R"([{"type": "function", "function": {"name": "f",
      "description": "Does f.", "parameters": {"type":"object","n":1.0}}},
      {"type": "function", "function": {"name": "g"}}])");
  const std::string expected =
      "[B]S\n\n## Tools\nYou have access to the following tools:\n\n"
      "### f\nDescription: Does f.\n\nParameters: {\"type\": \"object\", \"n\": 1.0}\n\n"
      "### g\nDescription: \n\nParameters: {}\n\n"
      "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
      "[cs][c]tool_call_name[s]tool_call_arguments[/c]{additional_tool_calls}[/cs]\n\nWhere:\n"
      "- `tool_call_name` must be an exact match to one of the available tools\n"
      "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
      "Schema\n"
      "- For multiple tool calls, chain them directly without separators or spaces[U]u[A][/t]";
  CHECK(Render({system, Say("user", "u")}, false) == Expand(expected));
}

TEST_CASE("what V3.1 cannot express is refused", "[tokenizer][chat]") {
  CHECK(Render({Say("developer", "d")}, false) ==
        "messages[0].role: chat format v3.1 has no developer role");
  CHECK(Render({Say("user", "u"), {{"role", "assistant"}, {"content", nullptr}}}, false) ==
        "messages[1].content: an assistant message without tool_calls needs text");
  Json system = Say("system", "S");
  system["response_format"] = {{"type", "json_object"}};
  CHECK(Render({system, Say("user", "u")}, false) ==
        "messages[0].response_format: chat format v3.1 has none");
}

}  // namespace dsa
