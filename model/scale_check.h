// What every weight_scale_inv must hold.  Internal to model/.
#pragma once

#include "model/checkpoint.h"

#include <cstddef>
#include <cstdint>
#include <span>

namespace dsa {

// How many of the scales are not powers of two.  `bytes` are those of the F32 tensor.
// INVALID_ARGUMENT naming file, tensor and value where one is not finite and positive.
Result<std::int64_t> CountOddScales(const CheckpointTensor& tensor,
                                    std::span<const std::byte> bytes);

}  // namespace dsa
