#include "model/file_writer.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include <fmt/core.h>

namespace dsa {

Status WriteFile(const std::string& path, const std::vector<std::string>& parts) {
  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  for (const std::string& part : parts) {
    file.write(part.data(), static_cast<std::streamsize>(part.size()));
  }
  file.close();
  if (!file) {
    return InvalidArgument(fmt::format("{}: cannot be written: {}", path,
                                       errno != 0 ? std::strerror(errno) : "unknown reason"));
  }
  return {};
}

}  // namespace dsa
