#include "tests/paths.h"

namespace dsa::testing {

std::string SourcePath(std::string_view path) {
  return std::string(DSA_SOURCE_DIR "/").append(path);
}

std::string BuildPath(std::string_view path) {
  return std::string(DSA_BUILD_DIR "/").append(path);
}

}  // namespace dsa::testing
