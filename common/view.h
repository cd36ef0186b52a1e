// Non-owning views of dense arrays, in host or device memory.  Plain data, so that a params struct
// made of them can be passed to a CUDA kernel by value.
//
// Vector, Matrix and Tensor3 know their element type; AnyMatrix and AnyTensor3 carry it as a value
// and serve activations and weights, which are float32 or bfloat16 by configuration.
#pragma once

#include "common/check.h"
#include "common/numeric.h"

#include <cstdint>

namespace dsa {

template <typename T>
struct Vector {
  T* data;
  std::int64_t size;
};

// Row-major; rows may be padded.
template <typename T>
struct Matrix {
  T* data;
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t row_stride;  // in elements, >= cols

  constexpr T* Row(std::int64_t row) const { return data + row * row_stride; }
};

// The element type of an AnyMatrix.  kF64 is that of sums that several ranks add up on the CPU.
enum class DataType : std::uint8_t { kF32, kBf16, kFp8E4m3, kF64 };

constexpr std::int64_t SizeOf(DataType type) {
  switch (type) {
    case DataType::kF32: return 4;
    case DataType::kBf16: return 2;
    case DataType::kFp8E4m3: return 1;
    case DataType::kF64: return 8;
  }
  return 0;
}

// A row-major matrix of run-time element type.  `Void` is `void` or `const void`.
template <typename Void>
struct BasicAnyMatrix {
  Void* data;
  DataType type;
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t row_stride;  // in elements, >= cols

  // Readable wherever it is writable.
  operator BasicAnyMatrix<const void>() const {  // NOLINT(google-explicit-constructor): a view
    return {data, type, rows, cols, row_stride};
  }
};
using AnyMatrix = BasicAnyMatrix<void>;
using ConstAnyMatrix = BasicAnyMatrix<const void>;

// A [rows, heads, cols] array of run-time element type, its last dimension contiguous: a per-head
// view of a matrix, such as the last 64 columns of every head of q.
template <typename Void>
struct BasicAnyTensor3 {
  Void* data;
  DataType type;
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t cols;
  std::int64_t row_stride;   // in elements
  std::int64_t head_stride;  // in elements, >= cols

  operator BasicAnyTensor3<const void>() const {  // NOLINT(google-explicit-constructor): a view
    return {data, type, rows, heads, cols, row_stride, head_stride};
  }
};
using AnyTensor3 = BasicAnyTensor3<void>;
using ConstAnyTensor3 = BasicAnyTensor3<const void>;

// A [T, H * W] matrix as [T, H, W].
inline AnyTensor3 HeadsOf(const AnyMatrix& matrix, std::int64_t heads) {
  DSA_CHECK(heads > 0 && matrix.cols % heads == 0, "HeadsOf: {} columns over {} heads", matrix.cols,
            heads);
  const std::int64_t width = matrix.cols / heads;
  return {.data = matrix.data,
          .type = matrix.type,
          .rows = matrix.rows,
          .heads = heads,
          .cols = width,
          .row_stride = matrix.row_stride,
          .head_stride = width};
}

}  // namespace dsa
