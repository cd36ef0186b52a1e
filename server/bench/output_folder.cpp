#include "server/bench/output_folder.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include <fmt/core.h>

namespace dsa::bench {

Status PrepareFolder(const std::string& folder, std::span<const std::string_view> files) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error || !std::filesystem::is_directory(folder, error)) {
    return InvalidArgument(fmt::format("output: {} cannot be made: {}", folder,
                                       error ? error.message() : "it is not a folder"));
  }
  for (const std::string_view file : files) {
    if (std::filesystem::exists(std::filesystem::path(folder) / file, error)) {
      return InvalidArgument(
          fmt::format("output: {} holds {} already; give a new folder", folder, file));
    }
  }
  return {};
}

Status WriteTextFile(const std::string& folder, std::string_view name, std::string_view text) {
  const std::filesystem::path path = std::filesystem::path(folder) / name;
  errno = 0;
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (!file) {
    return InvalidArgument(fmt::format("{}: cannot be written: {}", path.string(),
                                       errno == 0 ? "unknown reason" : std::strerror(errno)));
  }
  return {};
}

}  // namespace dsa::bench
