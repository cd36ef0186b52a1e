// Replies taken apart the same way whatever the pieces they arrive in: a call where one can be
// read, text everywhere else.
#include "tokenizer/reply_parser.h"

#include "tests/tokenizer/fixtures.h"
#include "tokenizer/reply_decoder.h"

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

struct Parsed {
  std::string reasoning;
  std::string content;
  std::vector<std::pair<std::string, std::string>> calls;  // name, arguments

  bool operator==(const Parsed&) const = default;
};

void Append(const ReplyDelta& delta, Parsed& parsed) {
  parsed.reasoning += delta.reasoning;
  parsed.content += delta.content;
  for (const ToolCall& call : delta.tool_calls) {
    CHECK(call.id == "call_" + std::to_string(parsed.calls.size()));
    parsed.calls.emplace_back(call.name, call.arguments);
  }
}

Parsed ParsePieces(ChatFormat format, bool thinking, const std::vector<std::string>& pieces,
                   ReplyEnd end) {
  const std::unique_ptr<ReplyParser> parser = MakeReplyParser(format, thinking);
  Parsed parsed;
  for (const std::string& piece : pieces) {
    Append(parser->Push(piece), parsed);
  }
  Append(parser->Finish(end), parsed);
  CHECK(parser->has_tool_calls() == !parsed.calls.empty());
  return parsed;
}

struct Case {
  ChatFormat format;
  bool thinking;
  std::string reply;
  Parsed expected;
  ReplyEnd end = ReplyEnd::kByModel;
};

// The token of a tool mark of V3.1, as a ReplyDecoder gives it: [calls], [/calls], [call], [/call]
// and [sep] in `text`.
std::string Marked(std::string text) {
  const std::pair<std::string, std::string_view> marks[] = {{"[calls]", kCallsBegin},
                                                            {"[/calls]", kCallsEnd},
                                                            {"[call]", kCallBegin},
                                                            {"[/call]", kCallEnd},
                                                            {"[sep]", kToolSeparator}};
  for (const auto& [name, mark] : marks) {
    for (std::size_t at = text.find(name); at != std::string::npos; at = text.find(name, at)) {
      const std::string whole = kMarkBegin + std::string(mark) + kMarkEnd;
      text.replace(at, name.size(), whole);
      at += whole.size();
    }
  }
  return text;
}

// As a client sees the text.
std::string Unmarked(const std::string& text) {
  std::string plain;
  for (const char byte : text) {
    plain += byte == kMarkBegin || byte == kMarkEnd ? "" : std::string(1, byte);
  }
  return plain;
}

std::string Calls32(const std::string& inner) {
  return "<｜DSML｜function_calls>\n" + inner + "</｜DSML｜function_calls>";
}

std::string Invoke32(const std::string& name, const std::string& inner) {
  return "<｜DSML｜invoke name=\"" + name + "\">\n" + inner + "</｜DSML｜invoke>\n";
}

std::string Parameter32(const std::string& name, const std::string& kind,
                        const std::string& value) {
  return "<｜DSML｜parameter name=\"" + name + "\" string=\"" + kind + "\">" + value +
         "</｜DSML｜parameter>\n";
}

std::vector<Case> WellFormedCases() {
  const auto v32 = ChatFormat::kV32;
  const auto v31 = ChatFormat::kV31;
  const std::string paris = Parameter32("city", "true", "Paris");
  const std::string list = R"([1, {"k": "<b>"}])";
  return {
      {v32, false, "Hello", {"", "Hello", {}}},
      {v32, true, "I think.</think>Hello", {"I think.", "Hello", {}}},
      {v32, true, "cut off </thin", {"cut off </thin", "", {}}},
      {v32, true, "a < b </ </think>c <d </e>", {"a < b </ ", "c <d </e>", {}}},
      {v32, false, "ends <", {"", "ends <", {}}},
      {v32, false, "ends\n\n", {"", "ends\n\n", {}}},
      {v32,
       false,
       "Hi.\n\n" + Calls32(Invoke32("get", paris)),
       {"", "Hi.", {{"get", R"({"city": "Paris"})"}}}},
      {v32,
       true,
       "call it</think>\n\n" + Calls32(Invoke32("get", paris)),
       {"call it", "", {{"get", R"({"city": "Paris"})"}}}},
      {v32,
       false,
       Calls32(Invoke32("f", Parameter32("two\nlines", "true", "x\n"))),
       {"", "", {{"f", R"({"two\nlines": "x\n"})"}}}},
      // A string stays one where it looks like something else.
      {v32,
       false,
       Calls32(Invoke32("f", Parameter32("a", "true", "7") + Parameter32("b", "true", "null") +
                                 Parameter32("c", "false", " 7 "))),
       {"", "", {{"f", R"({"a": "7", "b": "null", "c": 7})"}}}},
      {v32, true, "a <｜</think>b </｜c", {"a <｜", "b </｜c", {}}},
      {v32, false, "\n\n" + Calls32(Invoke32("none", "\n")), {"", "", {{"none", "{}"}}}},
      {v32,
       false,
       Calls32(
           Invoke32("a", Parameter32("n", "false", "1.50") + Parameter32("list", "false", list)) +
           Invoke32("搜索", Parameter32("q", "true", "say \"hi\"\n</b> \\ 1 < 2"))),
       {"",
        "",
        {{"a", R"({"n": 1.50, "list": [1, {"k": "<b>"}]})"},
         {"搜索", R"({"q": "say \"hi\"\n</b> \\ 1 < 2"})"}}}},
      {v31, false, "Hello <b> <｜x y</", {"", "Hello <b> <｜x y</", {}}},
      {v31, true, "hm</think>ok", {"hm", "ok", {}}},
      {v31,
       false,
       Marked("Sure.[calls][call]get[sep]{\"a\": 1}[/call][call]b[sep]{}[/call][/calls]"),
       {"", "Sure.", {{"get", "{\"a\": 1}"}, {"b", "{}"}}}},
  };
}

// Calls that can be read although their form is not the one that was taught.
std::vector<Case> VariedCases() {
  const auto v32 = ChatFormat::kV32;
  const auto v31 = ChatFormat::kV31;
  const std::string paris = Parameter32("city", "true", "Paris");
  const std::vector<std::pair<std::string, std::string>> got = {{"get", R"({"city": "Paris"})"}};
  const std::string whole = Invoke32("get", paris);
  const std::string block = Calls32(whole);
  const std::string name = "<｜DSML｜parameter name=";
  const std::vector<std::pair<std::string, std::string>> odd = {{"get", R"({"a\"b=c": ""})"}};
  const auto cut = ReplyEnd::kCutOff;
  const std::string open = "<｜DSML｜invoke name=\"get\">\n";
  const std::string city = "<｜DSML｜parameter name=\"city\" string=\"true\">Paris";
  const std::string close = "</｜DSML｜invoke>\n";
  return {
      // Only one line feed, or none, or three in front of the block.
      {v32, false, "Hi.\n" + block, {"", "Hi.", got}},
      {v32, false, "Hi.\n\n\n" + block, {"", "Hi.\n", got}},
      // Within the reasoning, before any end of it.
      {v32, true, "I call.\n\n" + block, {"I call.", "", got}},
      {v32, true, "I call." + block + "\nMore.</think>Done.", {"I call.More.", "Done.", got}},
      {v31,
       true,
       Marked("I call.[calls][call]get[sep]{\"city\": \"Paris\"}[/call][/calls]"),
       {"I call.", "", got}},
      {v32,
       true,
       Calls32(Invoke32("get", Parameter32("city", "true", "</think>"))),
       {"", "", {{"get", R"({"city": "</think>"})"}}}},
      // Spaces, the order of attributes, other quotes, attributes that nobody knows.
      {v32,
       false,
       "<｜DSML｜ function_calls >\n<｜DSML｜ invoke  name = \"get\" >\n"
       "<｜DSML｜parameter  string=\"true\"  name=\"city\" >Paris</｜DSML｜ parameter >\n"
       "</｜DSML｜ invoke >\n</｜DSML｜ function_calls >",
       {"", "", got}},
      {v32,
       false,
       Calls32(Invoke32(
           "get",
           "<｜DSML｜parameter type='x' name='city' string='true'>Paris</｜DSML｜parameter>")),
       {"", "", got}},
      // Another wrapper, none, and calls without what closes them.
      {v32, false, "<｜DSML｜tool_calls>\n" + whole + "</｜DSML｜tool_calls>", {"", "", got}},
      {v32, false, "Hi " + whole, {"", "Hi ", got}},
      {v32, false, open + paris, {"", "", got}},
      {v32, false, "<｜DSML｜function_calls>" + open + paris, {"", "", got}},
      {v32,
       false,
       "<｜DSML｜function_calls><｜DSML｜invoke name=\"a\">" + paris +
           "<｜DSML｜invoke name=\"b\"></｜DSML｜function_calls>",
       {"", "", {{"a", R"({"city": "Paris"})"}, {"b", "{}"}}}},
      {v32, false, open + paris + "</｜DSML｜invok>\n" + open + paris, {"", "", {got[0], got[0]}}},
      // A parameter whose closing tag is missing, misspelt, another's, or of another language.
      {v32, false, Calls32(open + city + "\n" + close), {"", "", got}},
      {v32, false, Calls32(open + city + close), {"", "", got}},
      {v32, false, Calls32(open + city + "</｜DSML｜param>\n" + close), {"", "", got}},
      {v32, false, Calls32(open + city + "\n</｜DSML｜parametr>\n" + close), {"", "", got}},
      {v32, false, Calls32(open + city + "</parameter>\n" + close), {"", "", got}},
      {v32, false, Calls32(open + city + "</｜DSML｜parameter\n" + close), {"", "", got}},
      {v32, false, Calls32(open + city + "\n"), {"", "", got}},
      {v32,
       false,
       Calls32(open + city + "\n" + Parameter32("n", "false", "2") + close),
       {"", "", {{"get", R"({"city": "Paris", "n": 2})"}}}},
      {v32,
       false,
       Calls32(open + "<｜DSML｜parameter name=\"t\" string=\"true\">one\n\n" + close),
       {"", "", {{"get", R"({"t": "one\n"})"}}}},
      // Not JSON where JSON was announced: a string.  No announcement: JSON if it is JSON.
      {v32,
       false,
       Calls32(Invoke32("get", Parameter32("n", "false", "nan"))),
       {"", "", {{"get", R"({"n": "nan"})"}}}},
      {v32, false, open + name + "\"n\">7" + close, {"", "", {{"get", R"({"n": 7})"}}}},
      // The same parameter twice, the object itself, nothing at all.
      {v32,
       false,
       Calls32(Invoke32("get", Parameter32("n", "false", "1") + Parameter32("n", "false", "2"))),
       {"", "", {{"get", R"({"n": 2})"}}}},
      {v32, false, Calls32(Invoke32("get", "{\"n\": 1}\n")), {"", "", {{"get", R"({"n": 1})"}}}},
      {v32, false, Calls32(Invoke32("get", "")), {"", "", {{"get", "{}"}}}},
      {v31, false, Marked("[calls][call]get[sep][/call][/calls]"), {"", "", {{"get", "{}"}}}},
      {v31, false, Marked("[call]get[sep]{}"), {"", "", {{"get", "{}"}}}},
      {v31,
       false,
       Marked("[call]get[sep]{}[call]b[sep]{} [/calls]\n x"),
       {"", "x", {{"get", "{}"}, {"b", "{}"}}}},
      // As R1 writes them.
      {v31,
       false,
       Marked("Sure.[calls][call]function[sep]get\n```json\n{\"city\": \"Paris\"}\n```[/call]\n"
              "[call]function[sep]now\n```json\n{}\n```[/call][/calls]"),
       {"", "Sure.", {got[0], {"now", "{}"}}}},
      {v31,
       false,
       Marked("[call]function[sep]get\n```json\n```[/call]"),
       {"", "", {{"get", "{}"}}}},
      {v31, false, Marked("[call]function[sep]now[/call]"), {"", "", {{"now", "{}"}}}},
      {v31,
       false,
       Marked("[call]function[sep]{\"a\": 1}[/call]"),
       {"", "", {{"function", "{\"a\": 1}"}}}},
      // A quote ends a value also where no space follows it, but not within the value.
      {v32, false, open + name + "\"city\"string=\"true\">Paris" + close, {"", "", got}},
      {v32, false, open + name + "\"a\"b=c\"string='true'>" + close, {"", "", odd}},
      // The block is opened twice.
      {v32, false, "<｜DSML｜function_calls>\n" + block, {"", "", got}},
      // Text in front of calls and text behind them are not one line, nor is a call that is none.
      {v32, false, "Hi.\n\n" + block + "\nDone.", {"", "Hi.\n\nDone.", got}},
      {v32,
       true,
       "Hi.\n" + block + "</think>\n" + open + "Done.",
       {"Hi.", "\n" + open + "Done.", got}},
      {v32, false, "Hi.\n\n" + block + "\n\n" + open, {"", "Hi.\n\n" + open, got}, cut},
      {v32, false, "Hi.\n\n" + whole + open + "x", {"", "Hi.\n\n" + open + "x", got}},
      // A reply that ends within a closing tag behind a call.
      {v32, false, "Hi.\n\n" + whole + "</｜DSML｜functi", {"", "Hi.", got}, cut},
      {v32, false, whole + "</", {"", "", got}, cut},
      {v32, false, whole + "<", {"", "<", got}, cut},
      // White space around calls is markup; text behind them is text.
      {v32, false, block + "\n\nDone.", {"", "Done.", got}},
  };
}

// What cannot be read as a call.  Empty content stands for the reply as it is.
std::vector<Case> TextCases() {
  const auto v32 = ChatFormat::kV32;
  const auto v31 = ChatFormat::kV31;
  const auto cut = ReplyEnd::kCutOff;
  const std::string open = "Hi.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get\">\n";
  const std::string paris = Parameter32("city", "true", "Paris");
  return {
      // Marks in prose.
      {v32, false, "Use <｜DSML｜ and <｜DSML｜function_calls> here", {}},
      {v32, false, "Use <｜DSML｜invoke of it", {}},
      {v32, false, "A block is <｜DSML｜function_calls>\n...\n</｜DSML｜function_calls>.", {}},
      {v32, false, "</｜DSML｜invoke> closes <｜DSML｜parameter name=\"x\"> and ｜DSML｜", {}},
      {v32, false, "<think>no</think> <｜User｜><｜tool▁calls▁begin｜>{}<|EOT|>", {}},
      {v31, false, "<think>no</think> <｜User｜><｜tool▁calls▁begin｜>{}<｜DSML｜invoke>", {}},
      {v31, false, "<｜tool▁call▁begin｜>get<｜tool▁sep｜>{}<｜tool▁call▁end｜>", {}},
      // Calls that are none.
      {v32, false, open + "not JSON </｜DSML｜invoke>\n</｜DSML｜function_calls>", {}},
      {v32, false, open + "{\"a\": }</｜DSML｜invoke>\n</｜DSML｜function_calls>", {}},
      {v32, false, open + "{\"a\": 1}\n" + paris + "</｜DSML｜invoke>", {}},
      {v32, false, open + paris + "and more</｜DSML｜invoke>\n</｜DSML｜function_calls>", {}},
      {v32,
       false,
       open + "<｜DSML｜parameter string=\"true\">x</｜DSML｜parameter></｜DSML｜invoke>",
       {}},
      {v32, false, open + "<｜DSML｜value>x</｜DSML｜value></｜DSML｜invoke>", {}},
      {v32, false, "<｜DSML｜invoke name=\"\">\n</｜DSML｜invoke>", {}},
      {v31, false, Marked("Hi.[calls][call]get[sep]{\"a\": }[/call][/calls]"), {}},
      {v31, false, Marked("Hi.[calls]then[call]get[/call] [sep] [/calls]"), {}},
      {v31, false, Marked("Hi.[calls][call][sep]{}[/call][/calls]"), {}},
      {v31, false, Marked("Hi.[call]two\nlines[sep]{}[/call]"), {}},
      {v31, false, Marked("Hi.[call]get[sep]prose about it[/call]"), {}},
      {v31, false, Marked("Hi.[call]get[sep]```json\n{}[/call]"), {}},
      // Cut off, wherever that is.
      {v32, false, "Hi.\n\n<｜DSM", {}, cut},
      {v32, false, "Hi.\n\n<｜DSML｜function_calls>\n<｜DSML｜invo", {}, cut},
      {v32, false, open, {}, cut},
      {v32, false, open + paris, {}, cut},
      {v32, false, open + "<｜DSML｜parameter name=\"city\" string=\"true\">Par</｜DS", {}, cut},
      {v32, false, open + "<｜DSML｜parameter name=\"city\" string=\"true\">Par", {}},
      {v31, false, Marked("Hi.[calls][call]get[sep]{\"a"), {}, cut},
      {v31, false, Marked("Hi.[calls][call]get[sep]{}"), {}, cut},
      {v31, false, Marked("Hi.[calls][call]ge"), {}},
      {v31, false, Marked("Hi.[calls]"), {}},
  };
}

void CheckWhole(const Case& c) {
  CAPTURE(c.reply);
  CHECK(ParsePieces(c.format, c.thinking, {c.reply}, c.end) == c.expected);
}

void CheckAllSplits(const Case& c) {
  CheckWhole(c);
  CAPTURE(c.reply);
  std::vector<std::string> bytes;
  for (const char byte : c.reply) {
    bytes.emplace_back(1, byte);
  }
  CHECK(ParsePieces(c.format, c.thinking, bytes, c.end) == c.expected);
  for (std::size_t split = 1; split < c.reply.size(); ++split) {
    const Parsed parsed =
        ParsePieces(c.format, c.thinking, {c.reply.substr(0, split), c.reply.substr(split)}, c.end);
    if (parsed != c.expected) {
      CAPTURE(split, parsed.reasoning, parsed.content);
      CHECK(parsed == c.expected);
    }
  }
}

}  // namespace

TEST_CASE("a reply is parsed the same in all pieces", "[tokenizer][reply]") {
  for (const Case& c : WellFormedCases()) {
    CheckAllSplits(c);
  }
}

TEST_CASE("a whole call is a call wherever and however it stands", "[tokenizer][reply]") {
  for (const Case& c : VariedCases()) {
    CheckAllSplits(c);
  }
}

TEST_CASE("what cannot be read as a call is text, whole", "[tokenizer][reply]") {
  for (Case c : TextCases()) {
    c.expected = {"", Unmarked(c.reply), {}};
    CheckAllSplits(c);
    // In the reasoning it is reasoning, and does not hide the end of it.
    if (c.reply.find("</think>") == std::string::npos && c.end == ReplyEnd::kByModel) {
      const std::string reply = c.reply;
      c.thinking = true;
      c.expected = {Unmarked(reply), "", {}};
      CheckAllSplits(c);
      c.reply = reply + "</think>x";
      c.expected.content = "x";
      CheckWhole(c);
    }
  }
}

TEST_CASE("a call that is none hides no call behind it", "[tokenizer][reply]") {
  const std::string good = Invoke32("get", "");
  const std::string bad = "<｜DSML｜invoke name=\"bad\">prose ";
  CheckAllSplits({ChatFormat::kV32, false, bad + good, {"", bad, {{"get", "{}"}}}});
  CheckAllSplits({ChatFormat::kV32, false, good + bad, {"", Unmarked(bad), {{"get", "{}"}}}});
  const std::string good31 = Marked("[call]get[sep]{}[/call]");
  const std::string bad31 = Marked("[call]bad[sep]prose ");
  CheckAllSplits({ChatFormat::kV31, false, bad31 + good31, {"", Unmarked(bad31), {{"get", "{}"}}}});
  CheckAllSplits({ChatFormat::kV31, false, good31 + bad31, {"", Unmarked(bad31), {{"get", "{}"}}}});
}

TEST_CASE("content streams: only what may be a mark is held back", "[tokenizer][reply]") {
  const std::unique_ptr<ReplyParser> parser = MakeReplyParser(ChatFormat::kV32, true);
  CHECK(parser->in_reasoning());
  CHECK(parser->Push("why <").reasoning == "why ");
  CHECK(parser->Push("b").reasoning == "<b");
  CHECK(parser->Push("</think>yes").content == "yes");
  CHECK_FALSE(parser->in_reasoning());
  CHECK(parser->Push(" a\n\n").content == " a");
  CHECK(parser->Push("\nb <｜").content == "\n\n\nb ");
  CHECK(parser->Push("c").content == "<｜c");
  // Prose about a mark is not held back for long.
  CHECK(parser->Push(" <｜DSML｜invoke name=\"f\"> is").content ==
        " <｜DSML｜invoke name=\"f\"> is");
  CHECK_FALSE(parser->Push("<｜DSML｜invoke name=\"f\n").content.empty());
  CHECK(parser->Push("<｜DSML｜invoke name=\"f").empty());
  CHECK(parser->Push(std::string(5000, 'x')).content.size() > 5000);
  CHECK(parser->Push("<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n").empty());
  // A call appears with its own end, before the block's.
  CHECK(parser->Push("</｜DSML｜invoke>").tool_calls.size() == 1);
  CHECK(parser->Finish(ReplyEnd::kByModel).empty());
}

TEST_CASE("long arguments cost no more than their length", "[tokenizer][reply]") {
  const std::unique_ptr<ReplyParser> parser = MakeReplyParser(ChatFormat::kV32, false);
  parser->Push("<｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"p\" string=\"true\">");
  for (int i = 0; i < 200'000; ++i) {
    parser->Push("some words < ");
  }
  CHECK(parser->Push("</｜DSML｜parameter></｜DSML｜invoke>").tool_calls.at(0).arguments.size() >
        2'000'000);
}

TEST_CASE("tokens that control are known by their ids and not by their text",
          "[tokenizer][reply]") {
  const Tokenizer& tokenizer = testing::DeepSeekTokenizer();
  const auto read = [&](ChatFormat format, const std::vector<TokenId>& ids) {
    ReplyDecoder decoder(tokenizer, format);
    std::string text;
    for (const TokenId id : ids) {
      decoder.Push(id, text);
    }
    decoder.Finish(text);
    const Parsed parsed = ParsePieces(format, false, {text}, ReplyEnd::kByModel);
    return parsed.content + (parsed.calls.empty() ? "" : "[" + parsed.calls[0].first + "]");
  };
  const auto added = [&](std::string_view text) { return *tokenizer.AddedToken(text); };
  const auto with = [&](std::string_view token) {
    std::vector<TokenId> ids = tokenizer.Encode("one ");
    ids.push_back(added(token));
    for (const TokenId id : tokenizer.Encode("two")) {
      ids.push_back(id);
    }
    return ids;
  };
  for (const ChatFormat format : {ChatFormat::kV32, ChatFormat::kV31}) {
    for (const char* token :
         {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<|EOT|>",
          "<｜User｜>", "<｜Assistant｜>", "<｜place▁holder▁no▁5｜>"}) {
      CAPTURE(token);
      CHECK(read(format, with(token)) == "one two");
      // The same text in other tokens is text.
      CHECK(read(format, tokenizer.Encode(std::string("one ") + token + "two")) ==
            std::string("one ") + token + "two");
    }
    CHECK(read(format, with("<｜fim▁hole｜>")) == "one <｜fim▁hole｜>two");
    const std::string spelled = "<｜tool▁call▁begin｜>get<｜tool▁sep｜>{}<｜tool▁call▁end｜>";
    CHECK(read(format, tokenizer.Encode(spelled)) == spelled);
    CHECK(read(format, tokenizer.EncodeWithAdded(spelled)) ==
          (format == ChatFormat::kV31 ? "[get]" : spelled));
  }
}

// What a client could put together again: all text, and of each call what it says.
TEST_CASE("random mixtures of marks and text parse alike in all pieces and lose no text",
          "[tokenizer][reply]") {
  const std::vector<std::string> parts = {
      "<｜DSML｜function_calls>", "<｜DSML｜invoke name=\"g\">", "</｜DSML｜invoke>",
      "<｜DSML｜parameter name=\"p\" string=\"false\">", "</｜DSML｜parameter>", "<｜DSML｜",
      "</｜DSML｜", "</｜DSML｜function_calls>", Marked("[calls]"), Marked("[call]"),
      Marked("[sep]"), Marked("[/call]"), Marked("[/calls]"), "<｜User｜>", "<think>", "</think>",
      "text", "{}", "1", "\n\n", "<",
      // What joins into marks.
      "</", "｜", "DSML", "tool▁", "sep", "thi", "nk", "function_calls>", ">", " name=\"f\"", "\">",
      "invoke", " string=\"false\""};
  std::mt19937 random(7);
  for (int round = 0; round < 30000; ++round) {
    const ChatFormat format = round % 2 == 0 ? ChatFormat::kV32 : ChatFormat::kV31;
    const bool thinking = random() % 2 == 0;
    const ReplyEnd end = random() % 2 == 0 ? ReplyEnd::kByModel : ReplyEnd::kCutOff;
    std::vector<std::string> pieces;
    std::string whole;
    const std::size_t count = 1 + random() % 16;
    for (std::size_t i = 0; i < count; ++i) {
      pieces.push_back(parts[random() % parts.size()]);
      whole += pieces.back();
    }
    const Parsed streamed = ParsePieces(format, thinking, pieces, end);
    bool right = streamed == ParsePieces(format, thinking, {whole}, end);
    if (streamed.calls.empty()) {
      // Nothing was left out but the one end of the reasoning.
      std::string text = streamed.reasoning + streamed.content;
      std::string expected = Unmarked(whole);
      const std::size_t think_end = thinking ? expected.find("</think>") : std::string::npos;
      if (think_end != std::string::npos) {
        expected.erase(think_end, 8);
        right = right && streamed.reasoning.size() == think_end;
      }
      right = right && text == expected;
    }
    if (!right) {
      CAPTURE(whole, streamed.reasoning, streamed.content);
      FAIL();
    }
  }
}

}  // namespace dsa
