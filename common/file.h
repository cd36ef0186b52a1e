// Reading files with pread, never mapped: a file that shrinks under a mapping reads as zeros or
// kills the process.
#pragma once

#include "common/status.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace dsa {

// A regular file opened for reading.  Thread-safe: every read names its offset.
class File final {
 public:
  // NOT_FOUND or INVALID_ARGUMENT naming the path and the system's reason.
  static Result<File> Open(const std::string& path);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  const std::string& path() const { return path_; }
  std::int64_t size() const { return size_; }

  // Fills `target` completely, or fails naming the path and offset.
  Status ReadAt(std::int64_t offset, void* target, std::size_t bytes) const;

  // INVALID_ARGUMENT if size or modification time differ from when it was opened.
  Status CheckUnchanged() const;

 private:
  File() = default;

  std::string path_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
  std::int64_t modified_ns_ = 0;
};

// The whole file; refused if larger than `bytes_max`.
Result<std::string> ReadFile(const std::string& path, std::int64_t bytes_max);

}  // namespace dsa
