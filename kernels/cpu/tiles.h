// The loop nest of the CPU backend's matrix operators: tiles of sums that stay in registers.
//
//   sums[i][j] += rows(i) * columns(j)
//
// Operators differ in what a vector holds (eight floats or four doubles), where rows and columns
// come from, in the order in which products are added and in how the lanes of a sum are joined: so
// each operator says that and no more. No bit of a result depends on the shape of its tile.
#pragma once

#include "kernels/cpu/simd.h"

#include <cstdint>

namespace dsa::cpu {

template <typename Vector, int kRowCount, int kColumnCount>
struct Tile {
  static constexpr int kRows = kRowCount;
  static constexpr int kColumns = kColumnCount;
  Vector sums[kRows][kColumns];

  // Calls body(i, j, sum) for every sum.  Unrolled, here and below, so that sums are registers.
  template <typename Body>
  void ForEach(const Body& body) {
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
      for (std::int64_t j = 0; j < kColumns; ++j) {
        body(i, j, sums[i][j]);
      }
    }
  }
  void Clear() {
    ForEach([](std::int64_t, std::int64_t, Vector& sum) { sum = Vector::Zero(); });
  }
  void Add(const Tile& other) {
    ForEach([&](std::int64_t i, std::int64_t j, Vector& sum) { sum = sum + other.sums[i][j]; });
  }

  // One product for every lane of every sum.
  template <typename Rows, typename Columns>
  void AddProducts(const Rows& rows, const Columns& columns) {
    Vector column[kColumns];
#pragma GCC unroll 8
    for (std::int64_t j = 0; j < kColumns; ++j) {
      column[j] = columns(j);
    }
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < kRows; ++i) {
      const Vector row = rows(i);
#pragma GCC unroll 8
      for (std::int64_t j = 0; j < kColumns; ++j) {
        sums[i][j] = MultiplyAdd(row, column[j], sums[i][j]);
      }
    }
  }
};

// Rows by columns of a tile.
template <int kRowCount, int kColumnCount>
struct Shape {
  static constexpr int kRows = kRowCount;
  static constexpr int kColumns = kColumnCount;
};

// Calls body(shape, row, column) for tiles that cover rows x columns: as many rows as fit in tiles
// of the first shape, then of the next.  Columns that no tile of a shape holds come one by one.
template <typename... Shapes, typename Body>
void ForTiles(std::int64_t rows, std::int64_t columns, const Body& body) {
  std::int64_t row = 0;
  const auto cover = [&]<typename S>(S shape) {
    const std::int64_t whole = columns - columns % S::kColumns;
    for (; row + S::kRows <= rows; row += S::kRows) {
      for (std::int64_t column = 0; column < whole; column += S::kColumns) {
        body(shape, row, column);
      }
      for (std::int64_t column = whole; column < columns; ++column) {
        body(Shape<S::kRows, 1>{}, row, column);
      }
    }
  };
  (cover(Shapes{}), ...);
}

}  // namespace dsa::cpu
