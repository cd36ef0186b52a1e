// Tiles of rows by heads: how the ops that multiply every head by a matrix of its own divide their
// work and move their values.
#pragma once

#include "common/view.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <cstdint>

namespace dsa::cpu {

inline constexpr std::int64_t kHeadTileRows = 16;

// Rows first .. last - 1 of one head.
struct HeadTile {
  std::int64_t head;
  std::int64_t first;
  std::int64_t last;

  std::int64_t rows() const { return last - first; }
};

// Calls body(tile) for every tile, on the pool's threads.
template <typename Body>
void ForTilesOfHeads(ThreadPool& pool, std::int64_t tokens, std::int64_t heads, const Body& body) {
  const std::int64_t tiles = (tokens + kHeadTileRows - 1) / kHeadTileRows;
  pool.ParallelFor(tiles * heads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t item = first; item < last; ++item) {
      const std::int64_t row = item % tiles * kHeadTileRows;
      body(HeadTile{
          .head = item / tiles, .first = row, .last = std::min(row + kHeadTileRows, tokens)});
    }
  });
}

// Calls body(tile, weights) so.  `weights` points to the matrix of the tile's head in `w`, rows =
// heads, which is f32 or bf16.
template <typename Body>
void ForHeadTiles(ThreadPool& pool, std::int64_t tokens, const ConstAnyTensor3& w,
                  const Body& body) {
  ForTilesOfHeads(pool, tokens, w.rows, [&](const HeadTile& tile) {
    const void* const weights = Offset(w.data, w.type, tile.head * w.row_stride);
    if (w.type == DataType::kF32) {
      body(tile, static_cast<const float*>(weights));
    } else {
      body(tile, static_cast<const Bf16*>(weights));
    }
  });
}

// values[i, j] = column `first_column` + j of the tile's row i, and back.
inline void LoadTile(const ConstAnyTensor3& source, const HeadTile& tile, std::int64_t first_column,
                     const Matrix<float>& values) {
  for (std::int64_t i = 0; i < values.rows; ++i) {
    const std::int64_t offset =
        (tile.first + i) * source.row_stride + tile.head * source.head_stride + first_column;
    LoadRow(Offset(source.data, source.type, offset), source.type, values.cols, values.Row(i));
  }
}
inline void StoreTile(const Matrix<float>& values, const AnyTensor3& target, const HeadTile& tile,
                      std::int64_t first_column) {
  for (std::int64_t i = 0; i < values.rows; ++i) {
    const std::int64_t offset =
        (tile.first + i) * target.row_stride + tile.head * target.head_stride + first_column;
    StoreRow(values.Row(i), values.cols, Offset(target.data, target.type, offset), target.type);
  }
}

}  // namespace dsa::cpu
