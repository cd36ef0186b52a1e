// Writing arrays in NumPy's .npy format, version 1.0.
#pragma once

#include "common/status.h"

#include <cstdint>
#include <span>
#include <string>

namespace dsa {

// Writes `values` as little-endian float32 of shape [rows, cols], C order; a file that is there is
// replaced.  INVALID_ARGUMENT naming the path where it can't be written.
Status WriteNpy(const std::string& path, std::span<const float> values, std::int64_t rows,
                std::int64_t cols);

}  // namespace dsa
