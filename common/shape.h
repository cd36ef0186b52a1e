// Checks that the tensors handed to an op agree about their named dimensions.
#pragma once

#include "common/view.h"

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace dsa {

// Binds each dimension name to the first extent seen under it and requires the same extent
// wherever the name appears again.
//
//   ShapeBinder shapes("RmsNorm");
//   const auto [tokens, hidden] = shapes.Match("x", p.x, "T", "D");
//   shapes.Match("weight", p.weight, "D");
//
// A mismatch is a CHECK failure such as
//   RmsNorm: weight has D=96, expected 128 (bound by x)
class ShapeBinder {
 public:
  explicit ShapeBinder(std::string_view op) : op_(op) {}

  template <typename T>
  std::array<std::int64_t, 1> Match(std::string_view tensor, const Vector<T>& v,
                                    std::string_view d0) {
    Bind(tensor, d0, v.size);
    return {v.size};
  }

  template <typename T>
  std::array<std::int64_t, 2> Match(std::string_view tensor, const Matrix<T>& m,
                                    std::string_view d0, std::string_view d1) {
    CheckStride(tensor, m.cols, m.row_stride);
    Bind(tensor, d0, m.rows);
    Bind(tensor, d1, m.cols);
    return {m.rows, m.cols};
  }

  template <typename Void>
  std::array<std::int64_t, 2> Match(std::string_view tensor, const BasicAnyMatrix<Void>& m,
                                    std::string_view d0, std::string_view d1) {
    CheckStride(tensor, m.cols, m.row_stride);
    Bind(tensor, d0, m.rows);
    Bind(tensor, d1, m.cols);
    return {m.rows, m.cols};
  }

  template <typename Void>
  std::array<std::int64_t, 3> Match(std::string_view tensor, const BasicAnyTensor3<Void>& m,
                                    std::string_view d0, std::string_view d1, std::string_view d2) {
    CheckStride(tensor, m.cols, m.head_stride);
    Bind(tensor, d0, m.rows);
    Bind(tensor, d1, m.heads);
    Bind(tensor, d2, m.cols);
    return {m.rows, m.heads, m.cols};
  }

 private:
  struct Dimension {
    std::string_view name;
    std::string_view bound_by;
    std::int64_t extent;
  };
  static constexpr int kDimensionsMax = 12;

  void Bind(std::string_view tensor, std::string_view name, std::int64_t extent);
  void CheckStride(std::string_view tensor, std::int64_t cols, std::int64_t row_stride) const;

  std::string_view op_;
  std::array<Dimension, kDimensionsMax> dimensions_{};
  int count_ = 0;
};

}  // namespace dsa
