// A folder for the files that a test writes.
#pragma once

#include "common/check.h"

#include <filesystem>
#include <string>
#include <system_error>

#include <stdlib.h>

namespace dsa::testing {

// A new folder, removed with its owner.
class TemporaryFolder final {
 public:
  TemporaryFolder() {
    // mkdtemp replaces the last six letters.
    std::string pattern = (std::filesystem::temp_directory_path() / "dsa-test-").string();
    pattern.append(6, 'X');
    DSA_CHECK(mkdtemp(pattern.data()) != nullptr, "mkdtemp");
    path_ = pattern;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace dsa::testing
