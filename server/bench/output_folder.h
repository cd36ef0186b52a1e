// Where a benchmark writes.  Any thread.
#pragma once

#include "common/status.h"

#include <span>
#include <string>
#include <string_view>

namespace dsa::bench {

// Makes the folder, and those above it, where it is missing.  INVALID_ARGUMENT where it cannot be
// made or holds one of `files` already: results of another run are never overwritten.
Status PrepareFolder(const std::string& folder, std::span<const std::string_view> files);

// Writes the whole file; INVALID_ARGUMENT naming it and the system's reason where that fails.
Status WriteTextFile(const std::string& folder, std::string_view name, std::string_view text);

}  // namespace dsa::bench
