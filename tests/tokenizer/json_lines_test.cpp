// What `dsa tokenize` and `dsa render` answer: one line each, in order, errors in place.
#include "tokenizer/json_lines.h"

#include "tests/tokenizer/fixtures.h"

#include <sstream>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::DeepSeekTokenizer;

std::vector<std::string> Tokenized(const std::string& lines, AddedMatching matching,
                                   std::int64_t expected_failures) {
  std::istringstream input(lines);
  std::vector<std::string> answers;
  const std::int64_t failed = AnswerLines(
      input,
      [&](std::string_view line) { return TokenizeLine(DeepSeekTokenizer(), matching, line); },
      [&](std::string_view answer) { answers.emplace_back(answer); });
  CHECK(failed == expected_failures);
  return answers;
}

}  // namespace

TEST_CASE("a line of text is answered by its ids", "[tokenizer][json_lines]") {
  const std::string lines = R"({"text": "12345678"})"
                            "\n"
                            R"({"text": ""})"
                            "\n"
                            R"({"text": "\n<｜User｜>"})";
  const auto on = Tokenized(lines, AddedMatching::kOn, 0);
  REQUIRE(on.size() == 3);
  CHECK(on[0] == R"({"ids":[6895,18009,2597]})");
  CHECK(on[1] == R"({"ids":[]})");
  CHECK(on[2] == R"({"ids":[201,128803]})");
  const auto off = Tokenized(lines, AddedMatching::kOff, 0);
  CHECK(off[0] == on[0]);
  CHECK(ParseJson(off[2], "answer").value()["ids"].size() > 3);
  CHECK(off[2].find("128803") == std::string::npos);
}

TEST_CASE("a bad line is answered by its error and the next one as usual",
          "[tokenizer][json_lines]") {
  const auto answers = Tokenized(
      "{\"text\": 3}\n\n \t\r\n{}\n{\"text\": \"a\", \"other\": 1}\n{\"text\": \"\xff\"}\n\n[]\n"
      "{\"text\": \"\\n\"}\n",
      AddedMatching::kOff, 5);
  REQUIRE(answers.size() == 6);
  const std::vector<int> numbers = {1, 4, 5, 6, 8};
  for (std::size_t i = 0; i < 5; ++i) {
    CAPTURE(i, answers[i]);
    const auto answer = ParseJson(answers[i], "answer");
    REQUIRE(answer.ok());
    CHECK(answer.value().size() == 2);
    CHECK(answer.value().contains("error"));
    CHECK(answer.value()["line"] == numbers[i]);
  }
  CHECK(answers[0].find("text") != std::string::npos);
  CHECK(answers[1].find("text") != std::string::npos);
  CHECK(answers[2].find("other") != std::string::npos);
  CHECK(answers[5] == R"({"ids":[201]})");
}

TEST_CASE("a line of messages is answered by the prompt of its format", "[tokenizer][json_lines]") {
  const std::string line =
      R"({"messages": [{"role": "user", "content": "Hi"}], "thinking": false})";
  CHECK(RenderLine(ChatFormat::kV32, line).value() ==
        R"({"prompt":"<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>"})");
  CHECK(RenderLine(ChatFormat::kV31, line).value() ==
        R"({"prompt":"<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>"})");
  const Result<std::string> bad = RenderLine(ChatFormat::kV32, R"({"messages": []})");
  CHECK_FALSE(bad.ok());
}

}  // namespace dsa
