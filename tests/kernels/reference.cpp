#include "tests/kernels/reference.h"

#include "tests/kernels/test_backend.h"

#include <algorithm>
#include <cmath>

namespace dsa::testing {

DoubleMatrix Product(const DoubleMatrix& x, const DoubleMatrix& weight) {
  REQUIRE(x.cols == weight.cols);
  DoubleMatrix y{.rows = x.rows, .cols = weight.rows, .values = {}};
  y.values.resize(static_cast<std::size_t>(y.rows * y.cols));
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t n = 0; n < weight.rows; ++n) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < x.cols; ++k) {
        sum += x.At(t, k) * weight.At(n, k);
      }
      y.At(t, n) = sum;
    }
  }
  return y;
}

DoubleMatrix Rounded(DataType type, DoubleMatrix matrix) {
  const std::vector<float> rounded = RoundedTo(type, ToFloats(matrix));
  matrix.values.assign(rounded.begin(), rounded.end());
  return matrix;
}

double NearestE4m3(double value) {
  const double magnitude = std::min(std::fabs(value), 448.0);
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const double quantum = std::ldexp(1.0, std::max(exponent - 1, -6) - 3);
  return std::copysign(std::nearbyint(magnitude / quantum) * quantum, value);
}

QuantizedMatrix Quantized(const DoubleMatrix& x, ScaleFormat format) {
  QuantizedMatrix result{
      .values = x,
      .scales = {.rows = x.rows, .cols = Fp8Blocks(x.cols), .values = {}},
  };
  result.scales.values.resize(static_cast<std::size_t>(result.scales.rows * result.scales.cols));
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t first = 0; first < x.cols; first += 128) {
      const std::int64_t last = std::min(first + 128, x.cols);
      float amax = 1e-4F;
      for (std::int64_t k = first; k < last; ++k) {
        amax = std::max(amax, static_cast<float>(std::fabs(x.At(t, k))));
      }
      float scale = amax / 448.0F;
      if (format == ScaleFormat::kPowerOfTwo) {
        int exponent = 0;
        const double mantissa = std::frexp(static_cast<double>(scale), &exponent);
        scale = static_cast<float>(std::ldexp(1.0, mantissa == 0.5 ? exponent - 1 : exponent));
      }
      result.scales.At(t, first / 128) = scale;
      for (std::int64_t k = first; k < last; ++k) {
        result.values.At(t, k) =
            NearestE4m3(static_cast<float>(x.At(t, k)) / scale);  // a float quotient
      }
    }
  }
  return result;
}

DoubleMatrix Dequantized(const QuantizedMatrix& quantized, std::int64_t scale_rows) {
  DoubleMatrix result = quantized.values;
  for (std::int64_t r = 0; r < result.rows; ++r) {
    for (std::int64_t k = 0; k < result.cols; ++k) {
      result.At(r, k) *= quantized.scales.At(r / scale_rows, k / 128);
    }
  }
  return result;
}

QuantizedMatrix RandomFp8Weight(std::int64_t rows, std::int64_t cols, ScaleFormat format,
                                std::uint32_t seed) {
  QuantizedMatrix weight{
      .values = ToDouble(rows, cols, RandomFloat(rows * cols, 100.0F, seed)),
      .scales = {.rows = Fp8Blocks(rows), .cols = Fp8Blocks(cols), .values = {}},
  };
  for (double& value : weight.values.values) {
    value = NearestE4m3(value);
  }
  const std::int64_t scales = weight.scales.rows * weight.scales.cols;
  for (std::int64_t i = 0; i < scales; ++i) {
    const auto step = static_cast<int>(i % 5);
    weight.scales.values.push_back(format == ScaleFormat::kPowerOfTwo
                                       ? std::ldexp(1.0, step - 14)
                                       : static_cast<float>(1e-4 * (1.0 + 0.7 * step)));
  }
  return weight;
}

std::vector<float> ToFloats(const DoubleMatrix& matrix) {
  return {matrix.values.begin(), matrix.values.end()};
}

std::vector<Fp8E4m3> ToFp8(const DoubleMatrix& matrix) {
  std::vector<Fp8E4m3> values;
  values.reserve(matrix.values.size());
  for (const double value : matrix.values) {
    values.push_back(ToFp8E4m3(static_cast<float>(value)));
  }
  return values;
}

double ShareEqual(std::span<const float> actual, std::span<const float> expected) {
  REQUIRE(actual.size() == expected.size());
  std::int64_t equal = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    equal += actual[i] == expected[i] ? 1 : 0;
  }
  return actual.empty() ? 1.0 : static_cast<double>(equal) / static_cast<double>(actual.size());
}

}  // namespace dsa::testing
