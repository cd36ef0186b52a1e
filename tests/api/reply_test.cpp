// A reply from the engine's tokens to what a client is told: stop strings act on content, and
// nothing depends on how many tokens the stream pump finds at once.
#include "server/api/reply.h"

#include "server/engine/stop_checker.h"

#include <random>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::reply_test {
namespace {

const ReplyFormat kThinking{.chat = ChatFormat::kV32, .thinking = true};
const ReplyFormat kPlain{.chat = ChatFormat::kV32, .thinking = false};

// Token i is piece i; `tail` is what the last token leaves, such as part of a character.
class PieceDecoder final : public TextDecoder {
 public:
  PieceDecoder(const std::vector<std::string>& pieces, std::string tail)
      : pieces_(pieces), tail_(std::move(tail)) {}
  void Push(TokenId id, std::string& out) override { out += pieces_[Value(id)]; }
  void Finish(std::string& out) override { out += tail_; }

 private:
  const std::vector<std::string>& pieces_;
  const std::string tail_;
};

// What the engine hands to the pump, token by token, until the reply ends.
std::vector<TokenDelta> Generate(const ReplyFormat& format, const std::vector<std::string>& pieces,
                                 const std::vector<std::string>& stop_strings,
                                 const std::string& tail = "") {
  static const std::vector<TokenId> no_end_ids;
  StopConditions stop;
  stop.max_tokens = static_cast<std::int64_t>(pieces.size());
  stop.stop_strings = stop_strings;
  StopChecker checker(stop, {.end_ids = no_end_ids, .decoder_bytes_max = 1024},
                      {.decoder = std::make_unique<PieceDecoder>(pieces, tail),
                       .content = stop_strings.empty() ? nullptr : MakeReplyContentReader(format)});
  std::vector<TokenDelta> deltas;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const TokenId id{static_cast<std::int32_t>(i)};
    checker.Judge(id, static_cast<std::int64_t>(i) + 1);
    TokenDelta delta;
    delta.finish = checker.Show();
    delta.text = checker.text();
    delta.tokens.push_back({.id = id,
                            .logprob = 0,
                            .text_bytes = static_cast<std::int32_t>(delta.text.size()),
                            .top_logprobs = {}});
    if (checker.content_bytes_max() >= 0) {
      delta.content_bytes_max = checker.content_bytes_max();
    }
    deltas.push_back(std::move(delta));
    if (deltas.back().finish) {
      break;
    }
  }
  return deltas;
}

struct Told {
  std::string reasoning;
  std::string content;
  std::vector<std::string> calls;
  std::int64_t reasoning_tokens = 0;
  std::optional<ReplyFinish> finish;

  bool operator==(const Told&) const = default;
};

// `at_once`: how many tokens the pump finds.
Told Tell(const ReplyFormat& format, const std::vector<TokenDelta>& deltas, std::size_t at_once) {
  ReplyAssembler assembler(format);
  Told told;
  for (std::size_t begin = 0; begin < deltas.size(); begin += at_once) {
    TokenDelta merged;
    for (std::size_t i = begin; i < std::min(begin + at_once, deltas.size()); ++i) {
      merged.text += deltas[i].text;
      merged.tokens.insert(merged.tokens.end(), deltas[i].tokens.begin(), deltas[i].tokens.end());
      merged.finish = deltas[i].finish;
      merged.content_bytes_max = deltas[i].content_bytes_max;
    }
    const ReplyPart part = assembler.Add(std::move(merged));
    told.reasoning += part.reasoning;
    told.content += part.content;
    for (const ToolCall& call : part.tool_calls) {
      told.calls.push_back(call.name + call.arguments);
    }
    told.reasoning_tokens = part.reasoning_tokens;
    told.finish = part.finish;
  }
  return told;
}

Told Read(const ReplyFormat& format, const std::vector<std::string>& pieces,
          const std::vector<std::string>& stop_strings) {
  const std::vector<TokenDelta> deltas = Generate(format, pieces, stop_strings);
  const Told told = Tell(format, deltas, 1);
  for (const std::size_t at_once : {2, 3, 1000}) {
    CHECK(Tell(format, deltas, at_once) == told);
  }
  return told;
}

}  // namespace

TEST_CASE("stop strings act on content alone", "[api][reply]") {
  const std::vector<std::string> pieces = {
      "why ",
      "STOP",
      "</think>",
      "Hi",
      " ST",
      "x.\n",
      "\n<",
      "｜DSML｜",
      "invoke name=\"f\">\n<｜DSML｜parameter name=\"p\">STOP\n",
      "</｜DSML｜invoke>"};
  const Told told = Read(kThinking, pieces, {"STOP", "\n\n", "DSML"});
  CHECK(told.reasoning == "why STOP");
  CHECK(told.content == "Hi STx.");
  CHECK(told.calls == std::vector<std::string>{R"(f{"p": "STOP"})"});
  CHECK(told.reasoning_tokens == 3);
  CHECK(told.finish == ReplyFinish::kLength);
  CHECK(Read(kThinking, pieces, {"STx"}).content == "Hi ");
  CHECK(Read(kThinking, pieces, {"STx"}).finish == ReplyFinish::kStop);
  CHECK(Read(kThinking, pieces, {}) == told);
}

TEST_CASE("what might begin a block is decided before a stop string in it counts", "[api][reply]") {
  const std::vector<std::string> pieces = {"a", "\n\n", "<", "｜DSML｜", " is", " b", "c"};
  const Told told = Read(kPlain, pieces, {"\n\n"});
  CHECK(told.content == "a");
  CHECK(told.finish == ReplyFinish::kStop);
  CHECK(Generate(kPlain, pieces, {"\n\n"}).size() == 5);  // drawn to find out
  // The end of the reply decides, too.
  CHECK(Read(kPlain, {"a", "\n\n"}, {"\n\n"}).content == "a");
  CHECK(Read(kPlain, {"a", "\n\n"}, {"\n\n"}).finish == ReplyFinish::kStop);
  // No byte of what may become a stop string is shown before it is none.
  ReplyAssembler assembler(kPlain);
  std::string shown;
  for (TokenDelta& delta : Generate(kPlain, {"xS", "TO", "q"}, {"STOP"})) {
    shown += assembler.Add(std::move(delta)).content + "|";
  }
  CHECK(shown == "x||STOq|");
}

TEST_CASE("what the last token leaves belongs to the content, with stop strings too",
          "[api][reply]") {
  for (const std::vector<std::string>& stop_strings :
       std::vector<std::vector<std::string>>{{}, {"never"}, {"\uFFFD and"}}) {
    const auto deltas = Generate(kPlain, {"one", " two"}, stop_strings, "\uFFFD");
    const Told told = Tell(kPlain, deltas, 1);
    CAPTURE(stop_strings.size());
    CHECK(told.content == "one two\uFFFD");
    CHECK(told.finish == ReplyFinish::kLength);
  }
  // And ends the reply where it completes a stop string.
  const auto deltas = Generate(kPlain, {"one", " two"}, {"o\uFFFD"}, "\uFFFD");
  CHECK(Tell(kPlain, deltas, 1).content == "one tw");
  CHECK(Tell(kPlain, deltas, 1).finish == ReplyFinish::kStop);
}

TEST_CASE("a reply that is ended from outside shows what was held back, with stop strings too",
          "[api][reply]") {
  static const std::vector<TokenId> no_end_ids;
  const std::vector<std::string> pieces = {"one", " ne"};
  StopConditions stop;
  stop.max_tokens = 10;
  stop.stop_strings = {"never"};
  StopChecker checker(stop, {.end_ids = no_end_ids, .decoder_bytes_max = 1024},
                      {.decoder = std::make_unique<PieceDecoder>(pieces, "\uFFFD"),
                       .content = MakeReplyContentReader(kPlain)});
  for (std::int32_t i = 0; i < 2; ++i) {
    checker.Judge(TokenId{i}, i + 1);
    CHECK_FALSE(checker.Show().has_value());
  }
  CHECK(checker.content_bytes_max() == 4);  // "ne" may begin the stop string
  checker.Flush();
  CHECK(checker.text() == "\uFFFD");
  CHECK(checker.content_bytes_max() < 0);  // all of it
}

TEST_CASE("content with stop strings is the content without, up to the first", "[api][reply]") {
  const std::vector<std::string> parts = {"<｜DSML｜function_calls>",
                                          "<｜DSML｜invoke name=\"g\">",
                                          "</｜DSML｜invoke>",
                                          "<｜DSML｜parameter name=\"p\" string=\"true\">",
                                          "</｜DSML｜parameter>",
                                          "</think>",
                                          "\n",
                                          "\n\n",
                                          "ab",
                                          "a",
                                          "b",
                                          "<",
                                          "｜",
                                          "DSML",
                                          "c"};
  const std::vector<std::string> stops = {"ab", "\n\n", "bab", "DSML", "<", "aba"};
  std::mt19937 random(3);
  for (int round = 0; round < 4000; ++round) {
    const ReplyFormat& format = round % 2 == 0 ? kThinking : kPlain;
    std::vector<std::string> pieces;
    for (std::size_t i = 1 + random() % 14; i > 0; --i) {
      pieces.push_back(parts[random() % parts.size()]);
    }
    const std::string stop = stops[random() % stops.size()];
    const Told all = Read(format, pieces, {});
    const Told stopped = Read(format, pieces, {stop});
    const std::size_t found = all.content.find(stop);
    CAPTURE(pieces, stop, all.content);
    CHECK(stopped.content == all.content.substr(0, found));
    CHECK((stopped.finish == ReplyFinish::kLength) == (found == std::string::npos));
    if (found == std::string::npos) {
      CHECK(stopped == all);
    }
  }
}

}  // namespace dsa::reply_test
