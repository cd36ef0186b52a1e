// Double-precision building blocks of the operator tests' references.  They share no code with
// kernels/, and none with common/numeric.h beyond what DeviceTensor needs to store values.
#pragma once

#include "common/numeric.h"
#include "common/view.h"

#include <cstdint>
#include <span>
#include <vector>

namespace dsa::testing {

// A dense [rows, cols] matrix.
struct DoubleMatrix {
  std::int64_t rows;
  std::int64_t cols;
  std::vector<double> values;

  double& At(std::int64_t row, std::int64_t col) { return values[row * cols + col]; }
  double At(std::int64_t row, std::int64_t col) const { return values[row * cols + col]; }
};

inline DoubleMatrix ToDouble(std::int64_t rows, std::int64_t cols, std::span<const float> values) {
  return {.rows = rows, .cols = cols, .values = {values.begin(), values.end()}};
}

// x W^T
DoubleMatrix Product(const DoubleMatrix& x, const DoubleMatrix& weight);

// Each value rounded to f32 and then to `type` (f32 or bf16).
DoubleMatrix Rounded(DataType type, DoubleMatrix matrix);

// To the nearest e4m3 value, ties to even, saturating at 448.
double NearestE4m3(double value);

// Quantized with one scale per row and 128 columns.
struct QuantizedMatrix {
  DoubleMatrix values;
  DoubleMatrix scales;  // [rows, ceil(cols / 128)]
};
QuantizedMatrix Quantized(const DoubleMatrix& x, ScaleFormat format);

// values * scales, where one scale covers `scale_rows` x 128 values.
DoubleMatrix Dequantized(const QuantizedMatrix& quantized, std::int64_t scale_rows);

// A random fp8 weight with its [ceil(rows / 128), ceil(cols / 128)] scales, of which no two
// neighbours are alike.
QuantizedMatrix RandomFp8Weight(std::int64_t rows, std::int64_t cols, ScaleFormat format,
                                std::uint32_t seed);

std::vector<float> ToFloats(const DoubleMatrix& matrix);
std::vector<Fp8E4m3> ToFp8(const DoubleMatrix& matrix);

// The share of values that are equal.
double ShareEqual(std::span<const float> actual, std::span<const float> expected);

}  // namespace dsa::testing
