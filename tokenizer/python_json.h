// JSON as Python's json module reads and writes it: models were trained on
// json.dumps(json.loads(text), ensure_ascii=False), so numbers keep Python's spelling and objects
// their order.  Pure functions; thread-safe.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

struct PythonValue {
  enum class Kind : std::uint8_t { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  std::string text;                // a string's content, or a number, true or false as printed
  std::vector<std::string> keys;   // of an object, in order
  std::vector<PythonValue> items;  // of an array, or the values of an object

  // The value of `key`; nullptr where it is absent or this is no object.
  const PythonValue* Find(std::string_view key) const;
  PythonValue* Find(std::string_view key);
};

// INVALID_ARGUMENT "<source>: not valid JSON: ..." for what is not strict JSON in UTF-8: duplicate
// keys, NaN, numbers beyond double's range, nesting beyond 64 and more than kClientJsonValuesMax
// values (common/json.h) too.
Result<PythonValue> ParsePython(std::string_view json, std::string_view source);

// The same of a whole document: the message has line and column wherever the text goes wrong.
Result<PythonValue> ParsePythonDocument(std::string_view json, std::string_view source);

// json.dumps(value, ensure_ascii=False): separators ", " and ": ".
std::string DumpPython(const PythonValue& value);

// repr(value) of a finite float.
std::string PythonFloat(double value);

// Appends `text` as a JSON string with its quotes.
void AppendPythonString(std::string_view text, std::string& out);

}  // namespace dsa
