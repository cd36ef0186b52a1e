// Checks shared by the Validate functions.
#pragma once

#include "common/check.h"
#include "common/shape.h"
#include "common/view.h"
#include "kernels/batch_view.h"

#include <string_view>

namespace dsa {

inline void CheckActivation(std::string_view op, std::string_view tensor, DataType type) {
  DSA_CHECK(type == DataType::kF32 || type == DataType::kBf16,
            "{}: {} has type {}, expected f32 (0) or bf16 (1)", op, tensor, static_cast<int>(type));
}

// The output of a product.  f64, on the CPU alone: a sum that is not rounded yet, this rank's part.
inline void CheckProduct(std::string_view op, std::string_view tensor, DataType type) {
  DSA_CHECK(type == DataType::kF32 || type == DataType::kBf16 || type == DataType::kF64,
            "{}: {} has type {}, expected f32 (0), bf16 (1) or f64 (3)", op, tensor,
            static_cast<int>(type));
}

inline void CheckSameType(std::string_view op, std::string_view tensor, DataType type,
                          DataType expected) {
  DSA_CHECK(type == expected, "{}: {} has type {}, expected {}", op, tensor, static_cast<int>(type),
            static_cast<int>(expected));
}

// [T] rows in whole groups.
inline void CheckRows(std::string_view op, ShapeBinder& shapes, const PagedRows& rows) {
  shapes.Match("positions", rows.positions, "T");
  shapes.Match("sequences", rows.sequences, "T");
  shapes.Match("block_tables", rows.block_tables, "S", "B");
  DSA_CHECK(rows.group >= 1 && rows.group <= kRowGroupMax && rows.positions.size % rows.group == 0,
            "{}: {} rows in groups of {}, expected whole groups of 1 to {}", op,
            rows.positions.size, rows.group, kRowGroupMax);
  DSA_CHECK(rows.visible_max >= 0, "{}: visible_max={}", op, rows.visible_max);
}

}  // namespace dsa
