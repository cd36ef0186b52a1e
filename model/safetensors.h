// One .safetensors file: a JSON header that names tensors, then their bytes.  Nothing in the file
// is trusted: every rule below is checked before an offset is used.
//
//   0         8                    8 + N                                 file size
//   | N, u64  | N bytes of JSON    | tensor bytes, no gaps, no overlap   |
//
// N <= 100,000,000; at most 200,000 tensors; names at most 256 bytes; rank at most 8; F32, BF16 and
// F8_E4M3 only; each tensor begins where the last ended, its span equals its shape's size, and the
// last one ends the file.
#pragma once

#include "common/file.h"
#include "common/status.h"
#include "common/view.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

inline constexpr std::int64_t kSafetensorsHeaderBytesMax = 100'000'000;
inline constexpr std::int64_t kSafetensorsTensorsMax = 200'000;
inline constexpr std::int64_t kSafetensorsNameBytesMax = 256;
inline constexpr std::int64_t kSafetensorsRankMax = 8;

struct StoredTensor {
  std::string name;
  DataType type;
  std::vector<std::int64_t> shape;
  std::int64_t offset;  // in the file
  std::int64_t bytes;
};

// A name from a file as it may stand in a message: quoted, ASCII, one line, of bounded length.
std::string QuotedName(std::string_view name);
// "F32", "BF16", "F8_E4M3".
std::string_view SafetensorsName(DataType type);
// "[2, 3]"
std::string ShapeText(const std::vector<std::int64_t>& shape);

// The tensors of a header, in the order of their bytes.  `json` is the header without its length,
// `file_bytes` the whole file's size, `source` its path for messages.  INVALID_ARGUMENT naming the
// tensor, value and rule.
Result<std::vector<StoredTensor>> ParseSafetensorsHeader(std::string_view json,
                                                         std::int64_t file_bytes,
                                                         std::string_view source);

// An opened file whose header has been checked.  Thread-safe.
class SafetensorsFile final {
 public:
  static Result<SafetensorsFile> Open(const std::string& path);

  const File& file() const { return file_; }
  const std::vector<StoredTensor>& tensors() const { return tensors_; }

 private:
  SafetensorsFile(File file, std::vector<StoredTensor> tensors)
      : file_(std::move(file)), tensors_(std::move(tensors)) {}

  File file_;
  std::vector<StoredTensor> tensors_;
};

}  // namespace dsa
