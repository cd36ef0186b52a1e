#include "tokenizer/python_json.h"

#include "common/json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <iterator>
#include <unordered_set>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

using Kind = PythonValue::Kind;

class PythonBuilder final : public nlohmann::json_sax<Json> {
 public:
  PythonBuilder(std::string_view text, PlaceForm form) : text_(text), form_(form) {}

  PythonValue document;
  std::string problem;  // empty: none
  bool problem_has_place = false;

  bool null() override { return Add(Kind::kNull, "null"); }
  bool boolean(bool value) override { return Add(Kind::kBool, value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override {
    return Add(Kind::kNumber, std::to_string(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    return Add(Kind::kNumber, std::to_string(value));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    // Python's integers have no bound: one that fits no machine integer keeps its digits.
    const bool integer = text.find_first_of(".eE") == std::string::npos;
    return Add(Kind::kNumber, integer ? text : PythonFloat(value));
  }
  bool string(string_t& value) override { return Add(Kind::kString, std::move(value)); }
  bool binary(binary_t& /*value*/) override { return Fail("binary value"); }
  bool start_object(std::size_t /*elements*/) override { return Open(Kind::kObject); }
  bool start_array(std::size_t /*elements*/) override { return Open(Kind::kArray); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& value) override {
    if (!keys_.back().insert(value).second) {
      return Fail("duplicate key");
    }
    stack_.back()->keys.push_back(std::move(value));
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception& error) override {
    if (problem.empty()) {
      problem = JsonFault(text_, position, token, error, form_);
      problem_has_place = true;
    }
    return false;
  }

 private:
  bool Fail(std::string_view what) {
    problem = what;
    return false;
  }
  bool FailByValues() { return Fail(fmt::format("more than {} values", kClientJsonValuesMax)); }

  PythonValue* Place(Kind kind, std::string text) {
    PythonValue* place = &document;
    if (!stack_.empty()) {
      place = &stack_.back()->items.emplace_back();
    }
    place->kind = kind;
    place->text = std::move(text);
    return place;
  }

  bool Add(Kind kind, std::string text) {
    if (++values_ > kClientJsonValuesMax) {
      return FailByValues();
    }
    Place(kind, std::move(text));
    return true;
  }

  bool Open(Kind kind) {
    if (stack_.size() >= static_cast<std::size_t>(kJsonDepthMax)) {
      return Fail(fmt::format("nested deeper than {}", kJsonDepthMax));
    }
    if (++values_ > kClientJsonValuesMax) {
      return FailByValues();
    }
    stack_.push_back(Place(kind, ""));
    keys_.emplace_back();
    return true;
  }

  bool Close() {
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  std::string_view text_;
  const PlaceForm form_;
  std::size_t values_ = 0;
  std::vector<PythonValue*> stack_;  // a parent does not grow while a child is open
  std::vector<std::unordered_set<std::string>> keys_;
};

// Counts what the library has read of a text.
struct CountedText {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at;
  const char** last;

  reference operator*() const { return *at; }
  CountedText& operator++() {
    ++at;
    *last = at;
    return *this;
  }
  bool operator==(const CountedText& other) const { return at == other.at; }
  bool operator!=(const CountedText& other) const { return at != other.at; }
};

// Where a builder refused what the library takes: it is read again, which happens for no honest
// client.
std::size_t RefusedAt(std::string_view json) {
  PythonBuilder builder(json, PlaceForm::kColumn);
  const char* last = json.data();
  Json::sax_parse(CountedText{json.data(), &last}, CountedText{json.data() + json.size(), &last},
                  &builder);
  return static_cast<std::size_t>(last - json.data()) - 1;
}

Result<PythonValue> Parse(std::string_view json, std::string_view source, PlaceForm form) {
  const auto refuse = [&](std::string_view what) {
    return InvalidArgument(fmt::format("{}: not valid JSON: {}", source, what));
  };
  // The library takes a NUL as the end and skips a byte-order mark; neither is JSON.
  const std::size_t nul = json.find('\0');
  if (nul != std::string_view::npos) {
    return refuse(TextPlace(json, nul, form) + ": NUL");
  }
  if (json.starts_with("\xEF\xBB\xBF")) {
    return refuse(TextPlace(json, 0, form) + ": byte-order mark");
  }
  PythonBuilder builder(json, form);
  if (Json::sax_parse(json.begin(), json.end(), &builder)) {
    return std::move(builder.document);
  }
  return builder.problem_has_place || form == PlaceForm::kColumn
             ? refuse(builder.problem)
             : refuse(
                   fmt::format("{}: {}", TextPlace(json, RefusedAt(json), form), builder.problem));
}

void AppendDump(const PythonValue& value, std::string& out) {
  switch (value.kind) {
    case Kind::kNull:
    case Kind::kBool:
    case Kind::kNumber: out += value.text; return;
    case Kind::kString: AppendPythonString(value.text, out); return;
    case Kind::kArray:
    case Kind::kObject: break;
  }
  const bool object = value.kind == Kind::kObject;
  out += object ? '{' : '[';
  for (std::size_t i = 0; i < value.items.size(); ++i) {
    out += i == 0 ? "" : ", ";
    if (object) {
      AppendPythonString(value.keys[i], out);
      out += ": ";
    }
    AppendDump(value.items[i], out);
  }
  out += object ? '}' : ']';
}

}  // namespace

const PythonValue* PythonValue::Find(std::string_view key) const {
  const auto found = std::find(keys.begin(), keys.end(), key);
  return found == keys.end() ? nullptr : &items[static_cast<std::size_t>(found - keys.begin())];
}

PythonValue* PythonValue::Find(std::string_view key) {
  const auto found = std::find(keys.begin(), keys.end(), key);
  return found == keys.end() ? nullptr : &items[static_cast<std::size_t>(found - keys.begin())];
}

Result<PythonValue> ParsePython(std::string_view json, std::string_view source) {
  return Parse(json, source, PlaceForm::kColumn);
}

Result<PythonValue> ParsePythonDocument(std::string_view json, std::string_view source) {
  return Parse(json, source, PlaceForm::kLineAndColumn);
}

std::string DumpPython(const PythonValue& value) {
  std::string out;
  AppendDump(value, out);
  return out;
}

// Both languages print the fewest digits that read back as the same double; they differ in where
// an exponent begins.
std::string PythonFloat(double value) {
  constexpr int kExponentMin = -4;
  constexpr int kExponentEnd = 16;
  std::array<char, 64> buffer{};
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value,
                                 std::chars_format::scientific);
  std::string_view text(buffer.data(), static_cast<std::size_t>(end.ptr - buffer.data()));
  std::string out;
  if (text.front() == '-') {
    out += '-';
    text.remove_prefix(1);
  }
  const std::size_t mark = text.find('e');
  int exponent = 0;
  const std::size_t sign = text[mark + 1] == '+' ? 1 : 0;  // from_chars knows no plus
  std::from_chars(text.data() + mark + 1 + sign, text.data() + text.size(), exponent);
  std::string digits(1, text.front());
  digits += mark > 1 ? text.substr(2, mark - 2) : "";
  const auto count = static_cast<int>(digits.size());
  if (exponent < kExponentMin || exponent >= kExponentEnd) {
    out += digits.substr(0, 1);
    out += count > 1 ? "." + digits.substr(1) : "";
    return out + fmt::format("e{}{:02d}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) {
    return out + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  }
  if (count <= exponent + 1) {
    return out + digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
  }
  const auto point = static_cast<std::size_t>(exponent) + 1;
  return out + digits.substr(0, point) + "." + digits.substr(point);
}

void AppendPythonString(std::string_view text, std::string& out) {
  out += '"';
  for (const char character : text) {
    switch (character) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      case '\b': out += "\\b"; break;
      case '\f': out += "\\f"; break;
      default:
        if (static_cast<unsigned char>(character) < 0x20) {
          out += fmt::format("\\u{:04x}", static_cast<unsigned>(character));
        } else {
          out += character;
        }
    }
  }
  out += '"';
}

}  // namespace dsa
