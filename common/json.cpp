#include "common/json.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <unordered_set>
#include <utility>

#include <fmt/core.h>
#include <fmt/ranges.h>

namespace dsa {
namespace {

using nlohmann::json_sax;

// Builds the document and refuses what nlohmann's own parser lets pass: duplicate keys, deep
// nesting and values without end.
class StrictBuilder final : public json_sax<Json> {
 public:
  StrictBuilder(std::string_view text, const JsonLimits& limits) : text_(text), limits_(limits) {}

  Json document;
  std::string problem;  // empty: none

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t& /*text*/) override { return Add(value); }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t& /*value*/) override { return Fail("binary value"); }

  bool start_object(std::size_t /*elements*/) override { return Open(Json::object()); }
  bool start_array(std::size_t /*elements*/) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& value) override {
    if (!keys_.back().insert(value).second) {
      return Fail(fmt::format("duplicate key \"{}\"", OneLine(value)));
    }
    key_ = std::move(value);
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception& error) override {
    if (problem.empty()) {
      problem = JsonFault(text_, position, token, error, PlaceForm::kColumn);
    }
    return false;
  }

 private:
  bool Fail(std::string what) {
    problem = std::move(what);
    return false;
  }

  Json* Place(Json value) {
    if (stack_.empty()) {
      document = std::move(value);
      return &document;
    }
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    // Appended without a look-up: duplicates were refused in key().
    auto& members = parent.get_ref<Json::object_t&>();
    members.emplace_back(std::move(key_), std::move(value));
    return &members.back().second;
  }

  bool Add(Json value) {
    if (++values_ > limits_.values_max) {
      return Fail(fmt::format("more than {} values", limits_.values_max));
    }
    Place(std::move(value));
    return true;
  }

  bool Open(Json container) {
    if (static_cast<int>(stack_.size()) >= limits_.depth_max) {
      return Fail(fmt::format("nested deeper than {}", limits_.depth_max));
    }
    if (++values_ > limits_.values_max) {
      return Fail(fmt::format("more than {} values", limits_.values_max));
    }
    stack_.push_back(Place(std::move(container)));
    keys_.emplace_back();
    return true;
  }

  bool Close() {
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  std::string_view text_;
  const JsonLimits limits_;
  std::size_t values_ = 0;
  std::string key_;
  std::vector<Json*> stack_;  // a parent does not grow while a child is open, so these stay valid
  std::vector<std::unordered_set<std::string>> keys_;
};

std::string CharacterName(char letter) {
  const auto code = static_cast<unsigned char>(letter);
  if (code < 0x20 || code == 0x7F) {
    return fmt::format("control character U+{:04X}", code);
  }
  return code < 0x80 ? fmt::format("'{}'", letter) : std::string("a character beyond ASCII");
}

std::string Join(const std::string& path, std::string_view key) {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}

}  // namespace

Result<Json> ParseJson(std::string_view text, std::string_view source, const JsonLimits& limits) {
  // The library takes a NUL as the end and skips a byte-order mark; neither is JSON.
  if (text.find('\0') != std::string_view::npos || text.starts_with("\xEF\xBB\xBF")) {
    return InvalidArgument(fmt::format("{}: not valid JSON: NUL or byte-order mark", source));
  }
  StrictBuilder builder(text, limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder) || !builder.problem.empty()) {
    return InvalidArgument(fmt::format("{}: not valid JSON: {}", source, builder.problem));
  }
  return std::move(builder.document);
}

std::string TextPlace(std::string_view text, std::size_t offset, PlaceForm form) {
  const std::string_view before = text.substr(0, offset);
  const std::size_t line_start = before.rfind('\n') + 1;  // 0 where there is none
  const auto column =
      1 + std::count_if(before.begin() + static_cast<std::ptrdiff_t>(line_start), before.end(),
                        [](char letter) { return (letter & 0xC0) != 0x80; });
  const std::size_t first_break = text.find('\n');
  const bool is_one_line = first_break == std::string_view::npos || first_break + 1 == text.size();
  if (is_one_line && form == PlaceForm::kColumn) {
    return fmt::format("column {}", column);
  }
  return fmt::format("line {}, column {}", 1 + std::count(before.begin(), before.end(), '\n'),
                     column);
}

std::string JsonFault(std::string_view text, std::size_t position, std::string_view token,
                      const nlohmann::detail::exception& error, PlaceForm form) {
  constexpr int kNumberOverflow = 406;  // the library's
  const auto place_of = [&](std::size_t offset) { return TextPlace(text, offset, form); };
  // `position` counts the characters read, the end of the text among them.
  if (position > text.size() || position == 0) {
    return fmt::format("{}: the text ends too early", place_of(text.size()));
  }
  const std::size_t last = position - 1;
  const std::string_view what = error.what();
  if (what.find("ill-formed UTF-8") != std::string_view::npos) {
    return fmt::format("{}: not UTF-8", place_of(last));
  }
  const bool overflow = error.id == kNumberOverflow;
  if (!overflow && what.find(" - unexpected ") == std::string_view::npos) {
    // No token: its last character is the one that fits none.
    const bool in_string = what.find("invalid string: ") != std::string_view::npos;
    return fmt::format("{}: unexpected {}{}", place_of(last), CharacterName(text[last]),
                       in_string ? " in a string" : "");
  }
  for (const std::string_view word : {"true", "false", "null"}) {
    if (text.substr(0, position).ends_with(word)) {
      return fmt::format("{}: unexpected {}", place_of(position - word.size()), word);
    }
  }
  if (std::string_view("{}[]:,").find(text[last]) != std::string_view::npos) {
    return fmt::format("{}: unexpected {}", place_of(last), CharacterName(text[last]));
  }
  // The library's token begins where the last string or number does.
  const std::string place = place_of(position - std::min(token.size(), position));
  if (overflow) {
    return fmt::format("{}: number too large", place);
  }
  return fmt::format("{}: unexpected {}", place, text[last] == '"' ? "string" : "number");
}

std::string OneLine(std::string_view text) {
  constexpr std::size_t kBytesMax = 300;
  std::string line(text.substr(0, kBytesMax));
  for (char& letter : line) {
    const auto code = static_cast<unsigned char>(letter);
    letter = code < 0x20 || code >= 0x7F ? '?' : letter;
  }
  return text.size() > kBytesMax ? line + "..." : line;
}

std::string Brief(const Json& value) {
  constexpr std::size_t kBytesMax = 64;
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kBytesMax) {
    text = text.substr(0, kBytesMax - 3) + "...";
  }
  return text;
}

Result<JsonObject> JsonObject::From(const Json& json, std::string source, std::string path) {
  if (!json.is_object()) {
    return InvalidArgument(fmt::format("{}: {}: {} is not an object", source,
                                       path.empty() ? "document" : path, Brief(json)));
  }
  return JsonObject(&json, std::move(source), std::move(path));
}

Error JsonObject::MakeError(std::string_view key, std::string_view what) const {
  return InvalidArgument(fmt::format("{}: {}: {}", source_, Join(path_, key), what));
}

bool JsonObject::Has(std::string_view key) const {
  const auto found = json_->find(std::string(key));
  return found != json_->end() && !found->is_null();
}

Result<const Json*> JsonObject::Find(std::string_view key) {
  read_.emplace(key);
  const auto found = json_->find(std::string(key));
  if (found == json_->end()) {
    return MakeError(key, "missing");
  }
  return &*found;
}

Result<std::int64_t> JsonObject::ReadInt(std::string_view key, std::int64_t minimum,
                                         std::int64_t maximum) {
  DSA_ASSIGN_OR_RETURN(const Json* value, Find(key));
  const bool too_large = value->is_number_unsigned() &&
                         value->get<std::uint64_t>() >
                             static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!value->is_number_integer() || too_large || value->get<std::int64_t>() < minimum ||
      value->get<std::int64_t>() > maximum) {
    return MakeError(
        key, fmt::format("{} is not an integer in [{}, {}]", Brief(*value), minimum, maximum));
  }
  return value->get<std::int64_t>();
}

Result<double> JsonObject::ReadDouble(std::string_view key, double minimum, double maximum) {
  DSA_ASSIGN_OR_RETURN(const Json* value, Find(key));
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!std::isfinite(number) || number < minimum || number > maximum) {
    return MakeError(
        key, fmt::format("{} is not a number in [{}, {}]", Brief(*value), minimum, maximum));
  }
  return number;
}

Result<bool> JsonObject::ReadBool(std::string_view key) {
  DSA_ASSIGN_OR_RETURN(const Json* value, Find(key));
  if (!value->is_boolean()) {
    return MakeError(key, fmt::format("{} is not true or false", Brief(*value)));
  }
  return value->get<bool>();
}

Result<std::string> JsonObject::ReadString(std::string_view key) {
  DSA_ASSIGN_OR_RETURN(const Json* value, Find(key));
  if (!value->is_string()) {
    return MakeError(key, fmt::format("{} is not a string", Brief(*value)));
  }
  return value->get<std::string>();
}

Result<std::string> JsonObject::ReadChoice(std::string_view key,
                                           const std::vector<std::string>& allowed) {
  DSA_ASSIGN_OR_RETURN(std::string value, ReadString(key));
  for (const std::string& choice : allowed) {
    if (value == choice) {
      return value;
    }
  }
  return MakeError(
      key, fmt::format("{} is not one of {}", Brief(Json(value)), fmt::join(allowed, ", ")));
}

Result<JsonObject> JsonObject::ReadObject(std::string_view key) {
  DSA_ASSIGN_OR_RETURN(const Json* value, Find(key));
  return From(*value, source_, Join(path_, key));
}

Result<const Json*> JsonObject::ReadArray(std::string_view key) {
  DSA_ASSIGN_OR_RETURN(const Json* value, Find(key));
  if (!value->is_array()) {
    return MakeError(key, fmt::format("{} is not an array", Brief(*value)));
  }
  return value;
}

Result<const Json*> JsonObject::ReadAny(std::string_view key) {
  return Find(key);
}

std::vector<std::string> JsonObject::UnreadKeys() const {
  std::vector<std::string> unread;
  for (const auto& [key, value] : json_->items()) {
    if (!read_.contains(key)) {
      unread.push_back(key);
    }
  }
  return unread;
}

Status JsonObject::CheckAllRead() const {
  const std::vector<std::string> unread = UnreadKeys();
  if (!unread.empty()) {
    return MakeError(OneLine(unread.front()), "unknown key");
  }
  return {};
}

}  // namespace dsa
