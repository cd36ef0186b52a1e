// Parts and readings of views: rows of a matrix, heads of its columns, a read-only or untyped look
// at the same memory.  None copies.
#pragma once

#include "common/check.h"
#include "common/view.h"

#include <cstdint>
#include <type_traits>

namespace dsa {

// Rows [first, first + count).
template <typename T>
Vector<T> RowsOf(const Vector<T>& vector, std::int64_t first, std::int64_t count) {
  return {.data = vector.data + first, .size = count};
}
template <typename T>
Matrix<T> RowsOf(const Matrix<T>& matrix, std::int64_t first, std::int64_t count) {
  return {.data = matrix.Row(first),
          .rows = count,
          .cols = matrix.cols,
          .row_stride = matrix.row_stride};
}
template <typename View>  // AnyMatrix or AnyTensor3, read-only or not; null stays null
View RowsOfAny(const View& view, std::int64_t first, std::int64_t count) {
  using Void = std::remove_pointer_t<decltype(view.data)>;
  using Byte = std::conditional_t<std::is_const_v<Void>, const std::uint8_t, std::uint8_t>;
  View rows = view;
  if (view.data != nullptr) {
    rows.data = static_cast<Byte*>(view.data) + first * view.row_stride * SizeOf(view.type);
  }
  rows.rows = count;
  return rows;
}

// Columns [first, first + cols) of every head.
inline AnyTensor3 ColumnsOf(const AnyTensor3& tensor, std::int64_t first, std::int64_t cols) {
  DSA_CHECK(first >= 0 && first + cols <= tensor.cols, "ColumnsOf: {} + {} of {} columns", first,
            cols, tensor.cols);
  AnyTensor3 columns = tensor;
  columns.data = static_cast<std::uint8_t*>(tensor.data) + first * SizeOf(tensor.type);
  columns.cols = cols;
  return columns;
}

template <typename T>
Matrix<const T> AsConst(const Matrix<T>& matrix) {
  return {.data = matrix.data,
          .rows = matrix.rows,
          .cols = matrix.cols,
          .row_stride = matrix.row_stride};
}
template <typename T>
Vector<const T> AsConst(const Vector<T>& vector) {
  return {.data = vector.data, .size = vector.size};
}

inline AnyMatrix AsAny(const Matrix<float>& matrix) {
  return {.data = matrix.data,
          .type = DataType::kF32,
          .rows = matrix.rows,
          .cols = matrix.cols,
          .row_stride = matrix.row_stride};
}

// For params whose matrix may be null.
inline AnyMatrix NullMatrix(DataType type) {
  return {.data = nullptr, .type = type, .rows = 0, .cols = 0, .row_stride = 0};
}

}  // namespace dsa
