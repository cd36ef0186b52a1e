// A tokenizer's files as a ZIP archive, for a router that has none of its own.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

struct ArchiveFile {
  std::string name;
  std::string bytes;
};

// Entries as they are, not compressed: they are read once.
std::string ZipArchive(const std::vector<ArchiveFile>& files);

// 64 hexadecimal digits.
std::string Sha256Hex(std::string_view bytes);

// The archive of the files at `paths`, each under its last name.  FAILED_PRECONDITION where there
// are none or one cannot be read.
Result<std::string> ReadTokenizerArchive(const std::vector<std::string>& paths);

}  // namespace dsa
