// Checks shared by the Validate functions.
#pragma once

#include "common/check.h"
#include "common/shape.h"
#include "common/view.h"

#include <string_view>

namespace dsa {

inline void CheckActivation(std::string_view op, std::string_view tensor, DataType type) {
  DSA_CHECK(type == DataType::kF32 || type == DataType::kBf16,
            "{}: {} has type {}, expected f32 (0) or bf16 (1)", op, tensor, static_cast<int>(type));
}

inline void CheckSameType(std::string_view op, std::string_view tensor, DataType type,
                          DataType expected) {
  DSA_CHECK(type == expected, "{}: {} has type {}, expected {}", op, tensor, static_cast<int>(type),
            static_cast<int>(expected));
}

}  // namespace dsa
