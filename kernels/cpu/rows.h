// Rows of run-time element type as floats: how the CPU ops read and write activations.
#pragma once

#include "common/numeric.h"
#include "common/view.h"

#include <cstdint>

namespace dsa {

// Calls body(pointer) with `data` as a pointer to its element type; not for kF64, which no op but
// the collectives reads.
template <typename Body>
void VisitType(const void* data, DataType type, const Body& body) {
  switch (type) {
    case DataType::kF32: body(static_cast<const float*>(data)); break;
    case DataType::kBf16: body(static_cast<const Bf16*>(data)); break;
    case DataType::kFp8E4m3: body(static_cast<const Fp8E4m3*>(data)); break;
    case DataType::kF64: break;
  }
}

inline const void* Offset(const void* data, DataType type, std::int64_t elements) {
  return static_cast<const char*>(data) + elements * SizeOf(type);
}
inline void* Offset(void* data, DataType type, std::int64_t elements) {
  return static_cast<char*>(data) + elements * SizeOf(type);
}

inline const void* RowOf(const ConstAnyMatrix& matrix, std::int64_t row) {
  return Offset(matrix.data, matrix.type, row * matrix.row_stride);
}
inline void* RowOf(const AnyMatrix& matrix, std::int64_t row) {
  return Offset(matrix.data, matrix.type, row * matrix.row_stride);
}

// target[i] = source[i] as float, exactly.
void LoadRow(const void* source, DataType type, std::int64_t count, float* target);

// As LoadRow, to double.
void LoadRowWide(const void* source, DataType type, std::int64_t count, double* target);

// target[i] = source[i] rounded to `type`, which is f32 or bf16.
void StoreRow(const float* source, std::int64_t count, void* target, DataType type);

// sums[i] += weight * source[i], with separate roundings of product and sum.
void AddScaledRow(const void* source, DataType type, float weight, std::int64_t count, float* sums);

// Rounds in place to what `type` can hold.
void RoundRow(float* values, std::int64_t count, DataType type);

// Quantizes a row with one scale per 128 values (kernels/ops/quantize_fp8.h).
struct QuantizedRow {
  Fp8E4m3* values;  // [count]
  float* scales;    // [ceil(count / 128)]
};
void QuantizeRow(const float* source, std::int64_t count, ScaleFormat format, QuantizedRow target);

}  // namespace dsa
