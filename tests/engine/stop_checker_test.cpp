#include "server/engine/stop_checker.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

// Gives the pieces of a script, one a token; token i is piece i.
class ScriptDecoder final : public TextDecoder {
 public:
  explicit ScriptDecoder(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {}
  void Push(TokenId id, std::string& out) override { out += pieces_[Value(id)]; }
  void Finish(std::string& out) override { out += "$"; }

 private:
  std::vector<std::string> pieces_;
};

struct Reply {
  std::string text;
  std::vector<std::string> shown;  // by token
  std::optional<FinishReason> finish;
  std::size_t tokens = 0;
};

Reply Feed(const StopConditions& stop, const std::vector<std::string>& pieces) {
  static const std::vector<TokenId> no_end_ids;
  StopChecker checker(stop, {.end_ids = no_end_ids, .decoder_bytes_max = 64},
                      {.decoder = std::make_unique<ScriptDecoder>(pieces)});
  Reply reply;
  while (!reply.finish.has_value() && reply.tokens < pieces.size()) {
    const TokenId id{static_cast<std::int32_t>(reply.tokens++)};
    const auto judged = checker.Judge(id, static_cast<std::int64_t>(reply.tokens));
    reply.finish = checker.Show();
    CHECK((!judged.has_value() || reply.finish.has_value()));
    reply.shown.emplace_back(checker.text());
    reply.text += checker.text();
  }
  return reply;
}

StopConditions StopAt(std::vector<std::string> strings) {
  StopConditions stop;
  stop.max_tokens = 1000;
  stop.stop_strings = std::move(strings);
  return stop;
}

TEST_CASE("A stop string across tokens ends the text before its first byte", "[stop]") {
  const Reply reply = Feed(StopAt({"STOP"}), {"one S", "T", "O", "P two"});
  CHECK(reply.text == "one ");
  CHECK(reply.shown == std::vector<std::string>{"one ", "", "", ""});
  CHECK(reply.finish == FinishReason::kStop);
  CHECK(reply.tokens == 4);
}

TEST_CASE("What only began like a stop string is shown once that is clear", "[stop]") {
  const Reply reply = Feed(StopAt({"STOP"}), {"S", "T", "x", "ST"});
  CHECK(reply.shown == std::vector<std::string>{"", "", "STx", ""});
  CHECK_FALSE(reply.finish.has_value());
}

TEST_CASE("A stop string that overlaps itself is found", "[stop]") {
  CHECK(Feed(StopAt({"aab"}), {"a", "a", "a", "b"}).text == "a");
  CHECK(Feed(StopAt({"abab"}), {"ab", "x", "aba", "b"}).text == "abx");
}

TEST_CASE("The first to be complete wins, and of those the longest", "[stop]") {
  CHECK(Feed(StopAt({"bcd", "c"}), {"abcd"}).text == "ab");
  CHECK(Feed(StopAt({"d", "bcd"}), {"abcd"}).text == "a");
}

TEST_CASE("At the length limit everything held back is shown", "[stop]") {
  StopConditions stop = StopAt({"STOP"});
  stop.max_tokens = 2;
  const Reply reply = Feed(stop, {"x", "STO", "P"});
  CHECK(reply.text == "xSTO$");
  CHECK(reply.finish == FinishReason::kLength);
}

TEST_CASE("A stop string completed before min_tokens does not end the reply", "[stop]") {
  StopConditions stop = StopAt({"ab"});
  stop.min_tokens = 3;
  const Reply reply = Feed(stop, {"ab", "c", "ab", "d"});
  CHECK(reply.text == "abc");
  CHECK(reply.tokens == 3);
}

TEST_CASE("Stop ids end a reply and have no text", "[stop]") {
  StopConditions stop = StopAt({});
  stop.stop_ids = {TokenId{1}};
  const Reply reply = Feed(stop, {"a", "b", "c"});
  CHECK(reply.text == "a$");
  CHECK(reply.tokens == 2);
  CHECK(reply.finish == FinishReason::kStop);
}

TEST_CASE("Matching agrees with a search of the whole text", "[stop]") {
  std::mt19937 random(11);
  const auto word = [&](std::size_t longest) {
    std::string text;
    for (std::size_t i = 1 + random() % longest; i > 0; --i) {
      text += static_cast<char>('a' + random() % 2);
    }
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> strings;
    for (std::size_t i = 1 + random() % 4; i > 0; --i) {
      strings.push_back(word(6));
    }
    std::vector<std::string> pieces;
    std::string whole;
    for (int i = 0; i < 12; ++i) {
      pieces.push_back(random() % 4 == 0 ? "" : word(3));
      whole += pieces.back();
    }
    std::size_t end = whole.size() + 1;
    std::size_t begin = whole.size();
    for (const std::string& text : strings) {
      const std::size_t found = whole.find(text);
      if (found != std::string::npos) {
        const std::size_t found_end = found + text.size();
        if (found_end < end || (found_end == end && found < begin)) {
          end = found_end;
          begin = found;
        }
      }
    }
    const Reply reply = Feed(StopAt(strings), pieces);
    CAPTURE(whole, strings);
    if (end <= whole.size()) {
      CHECK(reply.finish == FinishReason::kStop);
      CHECK(reply.text == whole.substr(0, begin));
    } else {
      CHECK_FALSE(reply.finish.has_value());
      CHECK(whole.compare(0, reply.text.size(), reply.text) == 0);
    }
  }
}

TEST_CASE("The longest stop strings allowed fit", "[stop]") {
  const std::string longest(256, 'x');
  std::vector<std::string> pieces(255, "x");
  pieces.emplace_back("y");
  const Reply reply = Feed(StopAt({longest}), pieces);
  CHECK(reply.text == std::string(255, 'x') + "y");
}

}  // namespace
}  // namespace dsa
