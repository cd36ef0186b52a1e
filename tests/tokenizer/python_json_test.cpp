// JSON in Python's spelling.  The expected texts are what json.dumps(json.loads(text),
// ensure_ascii=False) prints.
#include "tokenizer/python_json.h"

#include "common/json.h"

#include <catch2/catch.hpp>

namespace dsa {
namespace {

std::string Dump(const std::string& json) {
  const Result<PythonValue> value = ParsePython(json, "f");
  return value.ok() ? DumpPython(value.value()) : value.error().message;
}

}  // namespace

TEST_CASE("numbers are spelled as in Python", "[tokenizer][json]") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"1", "1"},
      {"-0", "0"},
      {"-0.0", "-0.0"},
      {"1.0", "1.0"},
      {"1.50", "1.5"},
      {"1e5", "100000.0"},
      {"1E5", "100000.0"},
      {"1e15", "1000000000000000.0"},
      {"1e16", "1e+16"},
      {"123456789012345678.0", "1.2345678901234568e+17"},
      {"1234567890123456.7", "1234567890123456.8"},
      {"0.0001", "0.0001"},
      {"0.00001", "1e-05"},
      {"0.000012345", "1.2345e-05"},
      {"1.5e300", "1.5e+300"},
      {"1e-400", "0.0"},
      {"5e-324", "5e-324"},
      {"0.1", "0.1"},
      {"100.25", "100.25"},
      {"3.14159", "3.14159"},
      {"9223372036854775807", "9223372036854775807"},
      {"-9223372036854775809", "-9223372036854775809"},
      {"18446744073709551616", "18446744073709551616"},
      {"123456789012345678901234567890", "123456789012345678901234567890"},
  };
  for (const auto& [json, expected] : cases) {
    CHECK(Dump(json) == expected);
  }
}

// Sixteen megabytes of these took 770 MB.
TEST_CASE("a text has a number of values that no honest one has", "[tokenizer][json]") {
  const auto array = [](std::size_t values, const std::string& value) {
    std::string json = "[";
    for (std::size_t i = 1; i < values; ++i) {  // the array is one itself
      json += i == 1 ? value : "," + value;
    }
    return json + "]";
  };
  const std::string value = GENERATE("1", "{}");
  CHECK(ParsePython(array(kClientJsonValuesMax, value), "f").ok());
  CHECK(ParsePython(array(kClientJsonValuesMax + 1, value), "f").error().message ==
        "f: not valid JSON: more than 262144 values");
}

TEST_CASE("strings, separators and order are Python's", "[tokenizer][json]") {
  CHECK(Dump(R"({"b":[1,2.0,{"x":null}],"a":{"t":true,"f":false},"e":{},"l":[]})") ==
        R"({"b": [1, 2.0, {"x": null}], "a": {"t": true, "f": false}, "e": {}, "l": []})");
  CHECK(Dump(R"(["\u4f60\ud83d\ude42\/","\u0000\u001f\u007f\u2028","\b\f\n\r\t\"\\"])") ==
        "[\"你🙂/\", \"\\u0000\\u001f\x7f\xe2\x80\xa8\", \"\\b\\f\\n\\r\\t\\\"\\\\\"]");
}

TEST_CASE("what is not strict JSON is refused without quoting it", "[tokenizer][json]") {
  for (const char* json : {"", "NaN", "[Infinity]", "1e400", "{\"a\": 1, \"a\": 2}", "\"\\ud800\"",
                           "\"\xff\"", "[1] x", "01", "{'a': 1}", "[1,]", "\xEF\xBB\xBF[1]"}) {
    CAPTURE(json);
    const Result<PythonValue> value = ParsePython(json, "f");
    REQUIRE_FALSE(value.ok());
    CHECK(value.error().message.rfind("f: not valid JSON: ", 0) == 0);
    CHECK(value.error().message.size() < 60);
  }
  CHECK_FALSE(ParsePython(std::string_view("[1]\0", 4), "f").ok());
  CHECK_FALSE(ParsePython(std::string_view("[1]\0]", 5), "f").ok());
  CHECK_FALSE(ParsePython(std::string(65, '[') + std::string(65, ']'), "f").ok());
  CHECK(ParsePython(std::string(64, '[') + std::string(64, ']'), "f").ok());
}

TEST_CASE("a document says line and column wherever it goes wrong", "[tokenizer][json]") {
  const std::string deep(65, '[');
  const std::pair<std::string, std::string> cases[] = {
      {"", "line 1, column 1: the text ends too early"},
      {"{\"a\": 1,}", "line 1, column 9: unexpected '}'"},
      {"{\n\"a\": 1,\n}", "line 3, column 1: unexpected '}'"},
      {"{\"a\": 1, \"b\": 2, \"a\": 3}", "line 1, column 20: duplicate key"},
      {"{\n \"a\": {\"x\": 1, \"\\\"\": 2,\n  \"x\": 3}}", "line 3, column 5: duplicate key"},
      {deep, "line 1, column 65: nested deeper than 64"},
      {"[1]\n" + std::string(1, '\0'), "line 2, column 1: NUL"},
      {"\xEF\xBB\xBF[1]", "line 1, column 1: byte-order mark"},
      {"[\"\xff\"]", "line 1, column 3: not UTF-8"},
      {"{} x", "line 1, column 4: unexpected 'x'"},
  };
  for (const auto& [json, expected] : cases) {
    CAPTURE(json);
    CHECK(ParsePythonDocument(json, "f").error().message == "f: not valid JSON: " + expected);
  }
  CHECK(ParsePythonDocument("{\"a\": [1]}", "f").ok());
}

}  // namespace dsa
