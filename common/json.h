// Reading JSON that must be exactly what we expect.  Every error is INVALID_ARGUMENT and names the
// source (a file), the path of the key, the value and what is allowed.
//
// Only .cpp files include this header: nlohmann/json is heavy.  Values keep their key order.
#pragma once

#include "common/status.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace dsa {

using Json = nlohmann::ordered_json;

inline constexpr int kJsonDepthMax = 64;

// Of what a client sends: a value of two bytes takes fifty times as many once it is read.  More
// than any conversation or context has.
inline constexpr std::size_t kClientJsonValuesMax = std::size_t{1} << 18;

struct JsonLimits {
  int depth_max = kJsonDepthMax;
  std::size_t values_max = std::numeric_limits<std::size_t>::max();
};

// Strict: UTF-8, no comments, no duplicate keys, within `limits`, nothing behind the value.
// `source` opens every message.
Result<Json> ParseJson(std::string_view text, std::string_view source,
                       const JsonLimits& limits = {});

// Whether a place in a text of one line says so.
enum class PlaceForm : std::uint8_t { kColumn, kLineAndColumn };

// "line 3, column 7" of the character at `offset`; columns count characters.  kColumn: no line
// where `text` has but one.
std::string TextPlace(std::string_view text, std::size_t offset, PlaceForm form);

// Where JSON goes wrong and what stands there, from what the library tells a json_sax's
// parse_error: "line 3, column 7: unexpected '}'".  Quotes one character at most, since a text may
// be a client's.
std::string JsonFault(std::string_view text, std::size_t position, std::string_view token,
                      const nlohmann::detail::exception& error, PlaceForm form);

// One object of a document.  Read* take a key once; CheckAllRead refuses what nobody asked for.
// Must not outlive the document.
class JsonObject final {
 public:
  // INVALID_ARGUMENT unless `json` is an object.  `path` names it in messages, such as "rope".
  static Result<JsonObject> From(const Json& json, std::string source, std::string path);

  bool Has(std::string_view key) const;  // present and not null
  Result<std::int64_t> ReadInt(std::string_view key, std::int64_t minimum, std::int64_t maximum);
  Result<double> ReadDouble(std::string_view key, double minimum, double maximum);  // finite
  Result<bool> ReadBool(std::string_view key);
  Result<std::string> ReadString(std::string_view key);
  Result<std::string> ReadChoice(std::string_view key, const std::vector<std::string>& allowed);
  Result<JsonObject> ReadObject(std::string_view key);
  Result<const Json*> ReadArray(std::string_view key);
  Result<const Json*> ReadAny(std::string_view key);

  // Keys that no Read* asked for, in order.
  std::vector<std::string> UnreadKeys() const;
  // INVALID_ARGUMENT naming the first unread key.
  Status CheckAllRead() const;

  // "<source>: <path>.<key>: <what>"
  Error MakeError(std::string_view key, std::string_view what) const;

 private:
  JsonObject(const Json* json, std::string source, std::string path)
      : json_(json), source_(std::move(source)), path_(std::move(path)) {}
  Result<const Json*> Find(std::string_view key);

  const Json* json_;
  std::string source_;
  std::string path_;
  std::set<std::string, std::less<>> read_;
};

// A key as it stands in messages: ASCII, one line, at most 303 bytes.
std::string OneLine(std::string_view text);

// The value as it stands in messages: at most 64 bytes, one line.
std::string Brief(const Json& value);

}  // namespace dsa
