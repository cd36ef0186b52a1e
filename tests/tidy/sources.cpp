#include "tests/tidy/sources.h"

#include "tests/paths.h"

#include <fstream>
#include <set>
#include <sstream>

namespace dsa::tidy {

std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<Source> Sources() {
  static const std::set<std::string> folders = {
      "common", "kernels", "cache", "model", "tokenizer", "scheduler", "server", "tests", "bench"};
  const std::filesystem::path root = testing::SourcePath("");
  std::vector<Source> sources;
  for (const std::string& folder : folders) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension();
      if (extension == ".h" || extension == ".cpp" || extension == ".cu" || extension == ".cuh") {
        sources.push_back(
            {std::filesystem::relative(entry.path(), root).string(), ReadText(entry.path())});
      }
    }
  }
  return sources;
}

}  // namespace dsa::tidy
