#include "common/file.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

namespace dsa {
namespace {

std::int64_t ModifiedNs(const struct stat& info) {
  return info.st_mtim.tv_sec * 1'000'000'000LL + info.st_mtim.tv_nsec;
}

}  // namespace

Result<File> File::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    const int reason = errno;
    struct stat entry {};
    if (reason == ENOENT && lstat(path.c_str(), &entry) == 0) {  // of a download that is not whole
      return InvalidArgument(fmt::format("{}: a link that leads nowhere", path));
    }
    return Error{reason == ENOENT ? ErrorCode::kNotFound : ErrorCode::kInvalidArgument,
                 fmt::format("{}: {}", path, std::strerror(reason))};
  }
  File file;
  file.path_ = path;
  file.descriptor_ = descriptor;
  struct stat info {};
  if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
    return InvalidArgument(fmt::format("{}: not a regular file", path));
  }
  file.size_ = info.st_size;
  file.modified_ns_ = ModifiedNs(info);
  return file;
}

File::File(File&& other) noexcept {
  *this = std::move(other);
}

File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) {
      close(descriptor_);
    }
    path_ = std::move(other.path_);
    descriptor_ = std::exchange(other.descriptor_, -1);
    size_ = other.size_;
    modified_ns_ = other.modified_ns_;
  }
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) {
    close(descriptor_);
  }
}

Status File::ReadAt(std::int64_t offset, void* target, std::size_t bytes) const {
  auto* out = static_cast<char*>(target);
  while (bytes > 0) {
    const ssize_t got = pread(descriptor_, out, bytes, offset);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return InvalidArgument(
          fmt::format("{}: read at byte {}: {}", path_, offset, std::strerror(errno)));
    }
    if (got == 0) {
      return InvalidArgument(
          fmt::format("{}: short read at byte {}: {} bytes missing", path_, offset, bytes));
    }
    out += got;
    offset += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return {};
}

Status File::CheckUnchanged() const {
  struct stat info {};
  if (fstat(descriptor_, &info) != 0 || info.st_size != size_ || ModifiedNs(info) != modified_ns_) {
    return InvalidArgument(fmt::format("{}: changed while it was read", path_));
  }
  return {};
}

Result<std::string> ReadFile(const std::string& path, std::int64_t bytes_max) {
  DSA_ASSIGN_OR_RETURN(const File file, File::Open(path));
  if (file.size() > bytes_max) {
    return InvalidArgument(
        fmt::format("{}: {} bytes, at most {} are allowed", path, file.size(), bytes_max));
  }
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  DSA_RETURN_IF_ERROR(file.ReadAt(0, text.data(), text.size()));
  return text;
}

}  // namespace dsa
