#include "model/safetensors.h"

#include "common/json.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <unordered_set>
#include <utility>

#include <fmt/core.h>
#include <fmt/ranges.h>

namespace dsa {
namespace {

constexpr std::int64_t kLengthBytes = 8;  // of the header's length
constexpr std::string_view kMetadataKey = "__metadata__";

std::optional<DataType> ParseType(std::string_view name) {
  for (const DataType type : {DataType::kF32, DataType::kBf16, DataType::kFp8E4m3}) {
    if (name == SafetensorsName(type)) {
      return type;
    }
  }
  return std::nullopt;
}

// Reads the header as a stream of events, so that a hostile one is refused where it goes wrong and
// no document is ever built.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  std::vector<StoredTensor> tensors;  // `offset` counts from the end of the header
  std::string problem;                // empty: none

  bool null() override { return Unexpected("null"); }
  bool boolean(bool /*value*/) override { return Unexpected("a boolean"); }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    return Unexpected(fmt::format("{}, not an integer", QuotedName(text)));
  }
  bool binary(binary_t& /*value*/) override { return Unexpected("binary data"); }
  bool number_integer(number_integer_t value) override {
    return Unexpected(fmt::format("{}, which is negative", value));
  }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool start_object(std::size_t /*elements*/) override;
  bool start_array(std::size_t /*elements*/) override;
  bool end_object() override;
  bool end_array() override;
  bool key(string_t& value) override;
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) override {
    return Fail(fmt::format("header is not valid JSON at byte {}", position));
  }

 private:
  enum class Place : std::uint8_t { kDocument, kHeader, kMetadata, kTensor, kShape, kOffsets };

  bool Fail(std::string what) {
    if (problem.empty()) {
      problem = std::move(what);
    }
    return false;
  }
  bool FailTensor(std::string_view what) {
    return Fail(fmt::format("tensor {}: {}", QuotedName(name_), what));
  }
  bool Unexpected(std::string_view what) {
    switch (place_) {
      case Place::kDocument: return Fail(fmt::format("header is {}, not an object", what));
      case Place::kHeader: return FailTensor(fmt::format("is {}, not an object", what));
      case Place::kMetadata: return Fail(fmt::format("__metadata__ holds {}, not a string", what));
      case Place::kTensor: return FailTensor(fmt::format("{} is {}", field_, what));
      case Place::kShape: return FailTensor(fmt::format("shape holds {}", what));
      case Place::kOffsets: return FailTensor(fmt::format("data_offsets holds {}", what));
    }
    return false;
  }
  bool BeginTensor();

  Place place_ = Place::kDocument;
  std::string name_;   // of the tensor being read
  std::string field_;  // of its fields
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> metadata_keys_;
  std::optional<DataType> type_;
  std::optional<std::vector<std::int64_t>> shape_;
  std::optional<std::vector<std::int64_t>> offsets_;
};

bool HeaderReader::number_unsigned(number_unsigned_t value) {
  if (place_ != Place::kShape && place_ != Place::kOffsets) {
    return Unexpected("a number");
  }
  if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    return Unexpected(fmt::format("{}, which is too large", value));
  }
  std::vector<std::int64_t>& list = place_ == Place::kShape ? *shape_ : *offsets_;
  const std::int64_t count_max = place_ == Place::kShape ? kSafetensorsRankMax : 2;
  if (static_cast<std::int64_t>(list.size()) == count_max) {
    return Unexpected(fmt::format("more than {} numbers", count_max));
  }
  list.push_back(static_cast<std::int64_t>(value));
  return true;
}

bool HeaderReader::string(string_t& value) {
  if (place_ == Place::kMetadata) {
    return true;
  }
  if (place_ != Place::kTensor || field_ != "dtype") {
    return Unexpected("a string");
  }
  type_ = ParseType(value);
  if (!type_) {
    return FailTensor(fmt::format("dtype {} is not one of F32, BF16, F8_E4M3", QuotedName(value)));
  }
  return true;
}

bool HeaderReader::start_object(std::size_t /*elements*/) {
  if (place_ == Place::kDocument) {
    place_ = Place::kHeader;
    return true;
  }
  if (place_ != Place::kHeader) {
    return Unexpected("an object");
  }
  if (name_ == kMetadataKey) {
    place_ = Place::kMetadata;
    return true;
  }
  return BeginTensor();
}

bool HeaderReader::BeginTensor() {
  if (static_cast<std::int64_t>(tensors.size()) == kSafetensorsTensorsMax) {
    return Fail(fmt::format("more than {} tensors", kSafetensorsTensorsMax));
  }
  place_ = Place::kTensor;
  type_.reset();
  shape_.reset();
  offsets_.reset();
  return true;
}

bool HeaderReader::start_array(std::size_t /*elements*/) {
  if (place_ == Place::kTensor && field_ == "shape") {
    place_ = Place::kShape;
    shape_.emplace();
    return true;
  }
  if (place_ == Place::kTensor && field_ == "data_offsets") {
    place_ = Place::kOffsets;
    offsets_.emplace();
    return true;
  }
  return Unexpected("an array");
}

bool HeaderReader::end_array() {
  if (place_ == Place::kOffsets && offsets_->size() != 2) {
    return FailTensor("data_offsets does not hold 2 numbers");
  }
  place_ = Place::kTensor;
  return true;
}

bool HeaderReader::end_object() {
  if (place_ == Place::kHeader) {
    place_ = Place::kDocument;
    return true;
  }
  if (place_ == Place::kTensor) {
    for (const auto& [field, present] :
         {std::pair("dtype", type_.has_value()), std::pair("shape", shape_.has_value()),
          std::pair("data_offsets", offsets_.has_value())}) {
      if (!present) {
        return FailTensor(fmt::format("{} is missing", field));
      }
    }
    const auto [begin, end] = std::pair((*offsets_)[0], (*offsets_)[1]);
    if (end < begin) {
      return FailTensor(fmt::format("data_offsets [{}, {}] end before they begin", begin, end));
    }
    tensors.push_back({.name = name_,
                       .type = *type_,
                       .shape = std::move(*shape_),
                       .offset = begin,
                       .bytes = end - begin});
  }
  place_ = Place::kHeader;
  return true;
}

bool HeaderReader::key(string_t& value) {
  if (place_ == Place::kMetadata) {
    if (!metadata_keys_.insert(value).second) {
      return Fail(fmt::format("__metadata__ has the key {} twice", QuotedName(value)));
    }
    return true;
  }
  if (place_ == Place::kTensor) {
    field_ = value;
    const bool again = (field_ == "dtype" && type_) || (field_ == "shape" && shape_) ||
                       (field_ == "data_offsets" && offsets_);
    if (again) {
      return FailTensor(fmt::format("{} stands there twice", field_));
    }
    if (field_ != "dtype" && field_ != "shape" && field_ != "data_offsets") {
      return FailTensor(fmt::format("unknown key {}", QuotedName(field_)));
    }
    return true;
  }
  name_ = value;
  if (static_cast<std::int64_t>(name_.size()) > kSafetensorsNameBytesMax) {
    return FailTensor(fmt::format("the name has {} bytes, at most {} are allowed", name_.size(),
                                  kSafetensorsNameBytesMax));
  }
  if (!names_.insert(name_).second) {
    return FailTensor("stands in the header twice");
  }
  return true;
}

// Bytes of a tensor, or nullopt where they do not fit 63 bits.
std::optional<std::int64_t> TensorBytes(const StoredTensor& tensor) {
  std::int64_t bytes = SizeOf(tensor.type);
  for (const std::int64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) {
      return std::nullopt;
    }
  }
  return bytes;
}

// Sorts by offset and checks that the tensors tile the data exactly.
Status CheckLayout(std::vector<StoredTensor>& tensors, std::int64_t data_bytes,
                   std::string_view source) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes);
  });
  std::int64_t expected = 0;
  for (const StoredTensor& tensor : tensors) {
    const auto fail = [&](const std::string& what) {
      return InvalidArgument(
          fmt::format("{}: tensor {}: {}", source, QuotedName(tensor.name), what));
    };
    if (tensor.offset != expected) {
      return fail(fmt::format("data_offsets begin at {}, the tensor before ends at {}",
                              tensor.offset, expected));
    }
    const std::optional<std::int64_t> bytes = TensorBytes(tensor);
    if (!bytes) {
      return fail(fmt::format("shape {} is too large", ShapeText(tensor.shape)));
    }
    if (*bytes != tensor.bytes) {
      return fail(fmt::format("data_offsets span {} bytes, {} {} takes {}", tensor.bytes,
                              SafetensorsName(tensor.type), ShapeText(tensor.shape), *bytes));
    }
    if (tensor.bytes > data_bytes - tensor.offset) {
      return fail(fmt::format("ends at data byte {}, the file holds {}",
                              tensor.offset + tensor.bytes, data_bytes));
    }
    expected += tensor.bytes;
  }
  if (expected != data_bytes) {
    return InvalidArgument(fmt::format("{}: {} bytes follow the last tensor, none are allowed",
                                       source, data_bytes - expected));
  }
  return {};
}

}  // namespace

std::string QuotedName(std::string_view name) {
  constexpr std::size_t kShown = 200;
  const std::string quoted =
      Json(std::string(name.substr(0, kShown))).dump(-1, ' ', true, Json::error_handler_t::replace);
  return name.size() > kShown ? quoted + "..." : quoted;
}

std::string_view SafetensorsName(DataType type) {
  switch (type) {
    case DataType::kF32: return "F32";
    case DataType::kBf16: return "BF16";
    case DataType::kFp8E4m3: return "F8_E4M3";
    case DataType::kF64: return "F64";
  }
  return "unknown";
}

std::string ShapeText(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

Result<std::vector<StoredTensor>> ParseSafetensorsHeader(std::string_view json,
                                                         std::int64_t file_bytes,
                                                         std::string_view source) {
  // The JSON library takes a NUL as the end and skips a byte-order mark; neither is JSON.
  if (json.find('\0') != std::string_view::npos || json.starts_with("\xEF\xBB\xBF")) {
    return InvalidArgument(
        fmt::format("{}: header is not valid JSON: NUL or byte-order mark", source));
  }
  HeaderReader reader;
  if (!Json::sax_parse(json.begin(), json.end(), &reader) || !reader.problem.empty()) {
    return InvalidArgument(fmt::format("{}: {}", source, reader.problem));
  }
  const std::int64_t data_begin = kLengthBytes + static_cast<std::int64_t>(json.size());
  if (file_bytes < data_begin) {
    return InvalidArgument(
        fmt::format("{}: {} bytes, the header alone takes {}", source, file_bytes, data_begin));
  }
  DSA_RETURN_IF_ERROR(CheckLayout(reader.tensors, file_bytes - data_begin, source));
  for (StoredTensor& tensor : reader.tensors) {
    tensor.offset += data_begin;
  }
  return std::move(reader.tensors);
}

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  DSA_ASSIGN_OR_RETURN(File file, File::Open(path));
  if (file.size() < kLengthBytes) {
    return InvalidArgument(
        fmt::format("{}: {} bytes, too short for a safetensors file", path, file.size()));
  }
  std::array<unsigned char, kLengthBytes> length_bytes{};
  DSA_RETURN_IF_ERROR(file.ReadAt(0, length_bytes.data(), length_bytes.size()));
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < length_bytes.size(); ++i) {
    length |= static_cast<std::uint64_t>(length_bytes[i]) << (8 * i);
  }
  if (length > static_cast<std::uint64_t>(kSafetensorsHeaderBytesMax)) {
    return InvalidArgument(fmt::format("{}: header length {} is more than {}", path, length,
                                       kSafetensorsHeaderBytesMax));
  }
  if (static_cast<std::int64_t>(length) > file.size() - kLengthBytes) {
    return InvalidArgument(
        fmt::format("{}: header length {}, the file holds {} bytes", path, length, file.size()));
  }
  std::string json(length, '\0');
  DSA_RETURN_IF_ERROR(file.ReadAt(kLengthBytes, json.data(), json.size()));
  DSA_ASSIGN_OR_RETURN(std::vector<StoredTensor> tensors,
                       ParseSafetensorsHeader(json, file.size(), path));
  return SafetensorsFile(std::move(file), std::move(tensors));
}

}  // namespace dsa
