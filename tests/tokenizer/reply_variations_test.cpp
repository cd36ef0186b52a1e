// Calls of V3.2 in forms that were not taught, beyond those of reply_parser_test.cpp.
#include "tokenizer/reply_parser.h"

#include <string>
#include <string_view>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

// What a client sees of a reply that comes in two pieces: content and then each call.
std::string Seen(std::string_view reply, std::size_t split) {
  const std::unique_ptr<ReplyParser> parser = MakeReplyParser(ChatFormat::kV32, false);
  std::string content;
  std::string calls;
  const auto take = [&](const ReplyDelta& delta) {
    content += delta.content;
    for (const ToolCall& call : delta.tool_calls) {
      calls += "|" + call.name + " " + call.arguments;
    }
  };
  take(parser->Push(reply.substr(0, split)));
  take(parser->Push(reply.substr(split)));
  take(parser->Finish(ReplyEnd::kByModel));
  return content + calls;
}

void CheckSeen(std::string_view reply, std::string_view expected) {
  CAPTURE(reply);
  for (std::size_t split = 0; split <= reply.size(); ++split) {
    const std::string seen = Seen(reply, split);
    if (seen != expected) {
      CAPTURE(split);
      CHECK(seen == expected);
    }
  }
}

}  // namespace

TEST_CASE("an attribute may stand without quotes", "[tokenizer][reply]") {
  CheckSeen(
      "<｜DSML｜function_calls>\n<｜DSML｜invoke name=get-2.x >\n"
      "<｜DSML｜parameter string=true name= city>7</｜DSML｜parameter>\n</｜DSML｜invoke>\n"
      "</｜DSML｜function_calls>",
      R"(|get-2.x {"city": "7"})");
  CheckSeen("<｜DSML｜invoke name=get/>", "|get {}");
  for (const std::string text :
       {"<｜DSML｜invoke name=>x</｜DSML｜invoke>", "<｜DSML｜invoke name=a b></｜DSML｜invoke>",
        "<｜DSML｜invoke name=a\"b\"></｜DSML｜invoke>", "<｜DSML｜invoke name=a",
        "<｜DSML｜invoke name=a<b></｜DSML｜invoke>"}) {
    CheckSeen(text, text);
  }
}

TEST_CASE("a string is one however its attribute is spelled", "[tokenizer][reply]") {
  for (const std::string value : {"true", "True", "TRUE"}) {
    CheckSeen("<｜DSML｜invoke name=\"get\"><｜DSML｜parameter name=\"zip\" string=\"" + value +
                  "\">00501</｜DSML｜parameter></｜DSML｜invoke>",
              R"(|get {"zip": "00501"})");
    CheckSeen("<｜DSML｜invoke name=\"get\"><｜DSML｜parameter name=\"n\" string=" + value +
                  ">7</｜DSML｜parameter></｜DSML｜invoke>",
              R"(|get {"n": "7"})");
  }
  for (const std::string value : {"false", "False", "no"}) {
    CheckSeen("<｜DSML｜invoke name=\"get\"><｜DSML｜parameter name=\"n\" string=\"" + value +
                  "\">7</｜DSML｜parameter></｜DSML｜invoke>",
              R"(|get {"n": 7})");
  }
}

TEST_CASE("a block of one call may be named so", "[tokenizer][reply]") {
  for (const std::string word : {"function_calls", "function_call", "tool_calls", "tool_call"}) {
    const std::string open = "<｜DSML｜" + word + ">\n";
    const std::string close = "</｜DSML｜" + word + ">";
    std::string reply = "x\n\n";
    reply += open;
    reply += "<｜DSML｜invoke name=\"get\">\n</｜DSML｜invoke>\n";
    reply += close;
    CheckSeen(reply, "x|get {}");
    const std::string none = "<｜DSML｜" + word + "> is a tag";
    CheckSeen(none, none);
  }
  // Another word is text, and the call behind it is one.
  CheckSeen("<｜DSML｜function_callers>\n<｜DSML｜invoke name=\"get\"></｜DSML｜invoke>",
            "<｜DSML｜function_callers>|get {}");
}

TEST_CASE("a block that is opened twice may be closed twice", "[tokenizer][reply]") {
  const std::string open = "<｜DSML｜function_calls>\n";
  const std::string call = "<｜DSML｜invoke name=\"get\">\n</｜DSML｜invoke>\n";
  const std::string close = "</｜DSML｜function_calls>\n";
  CheckSeen(open + open + call + close + close + "x", "x|get {}");
  CheckSeen(open + open + call + close + "x", "x|get {}");
  CheckSeen(open + call + close + close, close + "|get {}");
  CheckSeen(call + close + open + call + close + close, close + "|get {}|get {}");
  CheckSeen(open + open + call + "x" + close, "x" + close + "|get {}");
}

}  // namespace dsa
