// The strict JSON reader: what it refuses and how its messages name the place.
#include "common/json.h"

#include <utility>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {

TEST_CASE("JSON with duplicates, depth, trailing text or bad UTF-8 is refused", "[common][json]") {
  CHECK(ParseJson(R"({"a": 1, "b": [1, {"c": null}]})", "f").ok());
  CHECK(ParseJson(R"({"a": 1, "a": 2})", "f").error().message ==
        "f: not valid JSON: duplicate key \"a\"");
  CHECK(ParseJson("[[[1]]]", "f", {.depth_max = 2}).error().message ==
        "f: not valid JSON: nested deeper than 2");
  CHECK(ParseJson("[[1]]", "f", {.depth_max = 2}).ok());
  CHECK(ParseJson("[1, [2]]", "f", {.values_max = 4}).ok());
  CHECK(ParseJson("[1, [2]]", "f", {.values_max = 3}).error().message ==
        "f: not valid JSON: more than 3 values");
  CHECK(ParseJson("[1, [], 2]", "f", {.values_max = 2}).error().message ==
        "f: not valid JSON: more than 2 values");
  CHECK_FALSE(ParseJson("{} x", "f").ok());
  CHECK_FALSE(ParseJson("", "f").ok());
  CHECK_FALSE(ParseJson("{\"a\": \"\xff\"}", "f").ok());
  CHECK_FALSE(ParseJson("// c\n{}", "f").ok());
  CHECK_FALSE(ParseJson(std::string_view("{}\0x", 4), "f").ok());
  CHECK_FALSE(ParseJson("\xEF\xBB\xBF{}", "f").ok());
}

TEST_CASE("a message says where JSON goes wrong and what stands there", "[common][json]") {
  const std::pair<const char*, const char*> cases[] = {
      {"", "column 1: the text ends too early"},
      {"{\"a\": [1, 2", "column 12: the text ends too early"},
      {"{\"a\": tru", "column 10: the text ends too early"},
      {"{\"a\": \"no end", "column 14: the text ends too early"},
      {"{\n  \"a\": 1,\n}\n", "line 3, column 1: unexpected '}'"},
      {"{\"a\": 1}\n\n{}", "line 3, column 1: unexpected '{'"},
      {"{\"a\" 12}", "column 6: unexpected number"},
      {"{\"a\": 1\n \"secret\": 2}", "line 2, column 2: unexpected string"},
      {"[1 null]", "column 4: unexpected null"},
      {"{'a': 1}", "column 2: unexpected '''"},
      {"[NaN]", "column 2: unexpected 'N'"},
      {"[tr\nue]\n", "line 1, column 4: unexpected control character U+000A"},
      {"[01]", "column 3: unexpected number"},
      {"[1.5, 2 -3]", "column 9: unexpected number"},
      {"[\"true\" \"false\"]", "column 9: unexpected string"},
      {"[-x]", "column 3: unexpected 'x'"},
      {"[1e999]", "column 2: number too large"},
      {"// c\n{}", "line 1, column 1: unexpected '/'"},
      {"{\"\u4f60\u597d\": \u4f60}", "column 8: unexpected a character beyond ASCII"},
      {"[\"ab\ncd\"]\n", "line 1, column 5: unexpected control character U+000A in a string"},
      {"[\"a\\q\"]", "column 5: unexpected 'q' in a string"},
      {"[\"a\xff\"]", "column 4: not UTF-8"},
      {"\x01", "column 1: unexpected control character U+0001"},
  };
  for (const auto& [text, expected] : cases) {
    CAPTURE(text);
    CHECK(ParseJson(text, "f").error().message == fmt::format("f: not valid JSON: {}", expected));
  }
}

TEST_CASE("a message is one short line, whatever the document holds", "[common][json]") {
  const std::string longest = R"({"a": ")" + std::string(100'000, 'x') + "\n";
  for (const std::string& text : {std::string(R"({"a\nb": 1, "a\nb": 2})"), longest}) {
    const auto parsed = ParseJson(text, "f");
    REQUIRE_FALSE(parsed.ok());
    CHECK(parsed.error().message.size() < 500);
    CHECK(parsed.error().message.find('\n') == std::string::npos);
  }
  const Json document = ParseJson(R"({"x\ny": 1, "s": "a\nb"})", "f").value();
  JsonObject object = JsonObject::From(document, "f", "").value();
  CHECK(object.ReadChoice("s", {"a"}).error().message == R"(f: s: "a\nb" is not one of a)");
  CHECK(object.CheckAllRead().error().message == "f: x?y: unknown key");
}

TEST_CASE("values out of range name file, path, value and range", "[common][json]") {
  const Json document =
      ParseJson(
          R"({"n": 7, "x": 0.5, "s": "b", "o": {"k": -1, "z": 2}, "big": 18446744073709551615})",
          "f.json")
          .value();
  JsonObject object = JsonObject::From(document, "f.json", "").value();
  CHECK(object.ReadInt("n", 0, 7).value() == 7);
  CHECK(object.ReadInt("n", 0, 6).error().message == "f.json: n: 7 is not an integer in [0, 6]");
  CHECK_FALSE(object.ReadInt("x", 0, 6).ok());
  CHECK_FALSE(object.ReadInt("big", 0, 6).ok());
  CHECK(object.ReadDouble("x", 0.0, 1.0).value() == 0.5);
  CHECK(object.ReadChoice("s", {"a", "c"}).error().message ==
        "f.json: s: \"b\" is not one of a, c");
  CHECK(object.ReadInt("absent", 0, 6).error().message == "f.json: absent: missing");
  JsonObject inner = object.ReadObject("o").value();
  CHECK(inner.ReadInt("k", 0, 6).error().message == "f.json: o.k: -1 is not an integer in [0, 6]");
  CHECK(inner.CheckAllRead().error().message == "f.json: o.z: unknown key");
  CHECK(object.CheckAllRead().ok());
}

}  // namespace dsa
