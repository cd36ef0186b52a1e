// The fields of a JSON body: each is taken once, and what nobody took is told apart by what it
// would have meant.
#pragma once

#include "common/status.h"
#include "tokenizer/python_json.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dsa {

// What becomes of fields that neither OpenAI nor vLLM documents.
enum class UnknownKeys : std::uint8_t { kIgnored, kRefused };

// Absent and null are the same everywhere.  Errors are INVALID_ARGUMENT and name field and value.
class RequestFields final {
 public:
  // INVALID_ARGUMENT, with line and column, for what is no JSON object.
  static Result<RequestFields> Parse(std::string_view body);

  PythonValue& document() { return document_; }

  // Nullptr where nothing is said.
  const PythonValue* Take(std::string_view key);
  Result<std::optional<bool>> TakeBool(std::string_view key);
  Result<std::optional<std::int64_t>> TakeInt(std::string_view key);
  Result<std::optional<float>> TakeFloat(std::string_view key);
  Result<std::optional<std::string>> TakeText(std::string_view key);
  Result<std::vector<std::int64_t>> TakeInts(std::string_view key);  // an array; empty where absent

  // A key inside of a field that nobody documents, with its path: CheckRest's.
  void AddUnknown(std::string path) { unknown_inside_.push_back(std::move(path)); }

  // Of what was not taken: UNIMPLEMENTED for a documented field whose value would change the
  // answer; the rest is ignored, and the number of ignored keys returned, or refused.
  Result<std::int64_t> CheckRest(UnknownKeys unknown) const;

 private:
  explicit RequestFields(PythonValue document) : document_(std::move(document)) {}

  PythonValue document_;
  std::set<std::string, std::less<>> taken_;
  std::vector<std::string> unknown_inside_;
};

// The value of an element that must be an integer of 64 bits.
Result<std::int64_t> IntOf(const PythonValue& value, std::string_view field);

// Of one that must be a number.
Result<float> FloatOf(const PythonValue& value, std::string_view field);

Error NotA(std::string_view field, const PythonValue& value, std::string_view expected);

// UNIMPLEMENTED: a documented field's value that is none of the `allowed` ones.
Error NotDone(std::string_view field, const PythonValue& value, std::string_view allowed);

}  // namespace dsa
