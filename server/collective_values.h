// Values that the self-test of collectives sends, and how many of those that came are others.
#pragma once

#include "common/numeric.h"
#include "common/status.h"
#include "common/view.h"

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace dsa {

// A small integer, which every type keeps.
inline float ValueOf(std::int64_t rank, std::int64_t i) {
  return static_cast<float>((i * 7 + i / 251 + rank * 13) % 251);
}

// How many of the values differ from expected(i) as the type keeps it.
template <typename Expected>
std::int64_t Wrong(const std::vector<std::byte>& bytes, DataType type, std::int64_t count,
                   const Expected& expected) {
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = type == DataType::kBf16
                            ? ToFloat(reinterpret_cast<const Bf16*>(bytes.data())[i])
                            : reinterpret_cast<const float*>(bytes.data())[i];
    const float wanted =
        type == DataType::kBf16 ? ToFloat(ToBf16(expected(i))) : static_cast<float>(expected(i));
    wrong += value == wanted ? 0 : 1;
  }
  return wrong;
}

// INTERNAL with one line that names them.
Error Differs(std::int64_t rank, std::string_view op, std::int64_t rows, std::int64_t cols,
              std::int64_t wrong);

}  // namespace dsa
