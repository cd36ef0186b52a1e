// Writes small files whole.  Internal to model/.
#pragma once

#include "common/status.h"

#include <string>
#include <vector>

namespace dsa {

// Replaces the file by `parts`, one after the other.  INVALID_ARGUMENT naming path and reason.
Status WriteFile(const std::string& path, const std::vector<std::string>& parts);

}  // namespace dsa
