#include "model/scale_check.h"

#include <cmath>
#include <cstring>

#include <fmt/core.h>

namespace dsa {

Result<std::int64_t> CountOddScales(const CheckpointTensor& tensor,
                                    std::span<const std::byte> bytes) {
  std::int64_t odd = 0;
  for (std::size_t offset = 0; offset + sizeof(float) <= bytes.size(); offset += sizeof(float)) {
    float scale = 0.0F;
    std::memcpy(&scale, bytes.data() + offset, sizeof(float));
    if (!std::isfinite(scale) || scale <= 0.0F) {
      return InvalidArgument(fmt::format("{}: tensor {}: scale {} is {}, not finite and positive",
                                         tensor.shard->file().path(), tensor.stored->name,
                                         offset / sizeof(float), scale));
    }
    int exponent = 0;
    odd += std::frexp(scale, &exponent) != 0.5F ? 1 : 0;
  }
  return odd;
}

}  // namespace dsa
