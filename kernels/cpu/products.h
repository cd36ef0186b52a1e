// Products of matrices as attention needs them, each in one summation order whatever the tiling.
#pragma once

#include "kernels/cpu/prefetch.h"
#include "kernels/cpu/tiles.h"

#include <algorithm>
#include <cstdint>

namespace dsa::cpu {

// Which row of a matrix is meant by the j-th: itself, or the j-th of a list.
struct EveryRow {
  std::int64_t operator()(std::int64_t j) const { return j; }
};
struct ListedRows {
  const std::int32_t* rows;
  std::int64_t operator()(std::int64_t j) const { return rows[j]; }
};

// out[i, j] = scale * (a[i] . b[index(j)]).
template <typename A, typename B, typename Out>
struct ProductProblem {
  std::int64_t rows;     // of a and out
  std::int64_t columns;  // of out
  std::int64_t n;        // values of a row of a and b
  const A* a;
  std::int64_t a_stride;
  const B* b;
  std::int64_t b_stride;
  Out* out;
  std::int64_t out_stride;
};

// Keys and values of masked attention, n % 8 == 0.  Product k goes to lane k % 8; a lane sums 24
// products at a time, for short chains round less, and ReduceSum joins the lanes.
template <typename B>
void DotMatrix(const ProductProblem<float, B, float>& problem) {
  constexpr std::int64_t kChunk = 24 * kLanes;
  ForTiles<Shape<4, 2>, Shape<1, 4>>(
      problem.rows, problem.columns,
      [&]<typename S>(S /*shape*/, std::int64_t row, std::int64_t column) {
        const float* const a = problem.a + row * problem.a_stride;
        const B* const b = problem.b + column * problem.b_stride;
        Tile<F32x8, S::kRows, S::kColumns> total;
        total.Clear();
        for (std::int64_t first = 0; first < problem.n; first += kChunk) {
          Tile<F32x8, S::kRows, S::kColumns> sum;
          sum.Clear();
          for (std::int64_t k = first; k < std::min(first + kChunk, problem.n); k += kLanes) {
            sum.AddProducts([&](std::int64_t i) { return Load8(a + i * problem.a_stride + k); },
                            [&](std::int64_t j) { return Load8(b + j * problem.b_stride + k); });
          }
          total.Add(sum);
        }
        total.ForEach([&](std::int64_t i, std::int64_t j, F32x8 sum) {
          problem.out[(row + i) * problem.out_stride + column + j] = ReduceSum(sum);
        });
      });
}

// Attention scores, n % 4 == 0, in double: a float32 chain would leave them wrong by enough to
// round some probability of every few rows to the other side.  a holds float32 values: each meets
// many rows of b, so it is widened once.  Product k goes to lane k % 4; ReduceSum joins them.
template <typename Index>
void ScoreMatrix(const ProductProblem<double, float, double>& problem, double scale, Index index) {
  ForTiles<Shape<8, 1>, Shape<4, 2>, Shape<1, 4>>(
      problem.rows, problem.columns,
      [&]<typename S>(S /*shape*/, std::int64_t row, std::int64_t column) {
        const double* const a = problem.a + row * problem.a_stride;
        const float* b[S::kColumns];
        for (std::int64_t j = 0; j < S::kColumns; ++j) {
          b[j] = problem.b + index(column + j) * problem.b_stride;
        }
        Tile<F64x4, S::kRows, S::kColumns> tile;
        tile.Clear();
        for (std::int64_t k = 0; k < problem.n; k += kDoubleLanes) {
          tile.AddProducts([&](std::int64_t i) { return Load4(a + i * problem.a_stride + k); },
                           [&](std::int64_t j) { return Load4(b[j] + k); });
        }
        tile.ForEach([&](std::int64_t i, std::int64_t j, F64x4 sum) {
          problem.out[(row + i) * problem.out_stride + column + j] = scale * ReduceSum(sum);
        });
      });
}

// Values of heads, n % 16 == 0, in the order of NumPy's einsum, whose bits they have where products
// are exact.  Product k goes to lane k % 4, of 16 products the last four first; neighbouring lanes
// are joined.  Two rows of b lie side by side in a vector.
template <typename B>
void EinsumMatrix(const ProductProblem<float, B, float>& problem) {
  const std::int64_t pairs = (problem.columns + 1) / 2;
  ForTiles<Shape<8, 1>, Shape<1, 8>>(
      problem.rows, pairs, [&]<typename S>(S /*shape*/, std::int64_t row, std::int64_t pair) {
        const float* const a = problem.a + row * problem.a_stride;
        const auto b = [&](std::int64_t column) {  // beyond the last, the last again
          return problem.b + std::min(column, problem.columns - 1) * problem.b_stride;
        };
        Tile<F32x8, S::kRows, S::kColumns> tile;
        tile.Clear();
        for (std::int64_t first = 0; first < problem.n; first += 16) {
          if constexpr (S::kRows == 1) {  // half of the rows of the next tile, in turn
#pragma GCC unroll 8
            for (std::int64_t p = 0; p < S::kColumns; ++p) {
              Prefetch(problem.b + first +
                       (2 * (pair + S::kColumns + p) + first / 16 % 2) * problem.b_stride);
            }
          }
          for (std::int64_t k = first + 8; k >= first; k -= 8) {
            F32x8Pair eight[S::kColumns];
#pragma GCC unroll 8
            for (std::int64_t p = 0; p < S::kColumns; ++p) {
              eight[p] = Load8And8(b(2 * (pair + p)) + k, b(2 * (pair + p) + 1) + k);
            }
            tile.AddProducts(
                [&](std::int64_t i) { return LoadTwice4(a + i * problem.a_stride + k + 4); },
                [&](std::int64_t p) { return eight[p].high; });
            tile.AddProducts(
                [&](std::int64_t i) { return LoadTwice4(a + i * problem.a_stride + k); },
                [&](std::int64_t p) { return eight[p].low; });
          }
        }
        tile.ForEach([&](std::int64_t i, std::int64_t p, F32x8 sum) {
          float lanes[kLanes];
          Store8(lanes, sum);
          const std::int64_t column = 2 * (pair + p);
          float* const out = problem.out + (row + i) * problem.out_stride + column;
          out[0] = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
          if (column + 1 < problem.columns) {
            out[1] = (lanes[4] + lanes[5]) + (lanes[6] + lanes[7]);
          }
        });
      });
}

// How the chunks of a weighted sum join.
enum class Chunks : std::uint8_t {
  kApart,    // each is summed from zero and then added: short chains round less
  kChained,  // each goes on from the total before it: ascending terms in one
             // chain
};

// Terms that are summed before their sum goes to the total.
inline constexpr std::int64_t kWeightedSumChunk = 64;

// out[i] += sum over j of weights[i, j] * b[index(j)].
template <typename B>
struct WeightedSumProblem {
  std::int64_t rows;   // of weights and out
  std::int64_t terms;  // of a sum
  std::int64_t width;  // values of a row of b and out, % 8 == 0
  const float* weights;
  std::int64_t weight_stride;
  const B* b;
  std::int64_t b_stride;
  float* out;
  std::int64_t out_stride;
};

// A lane per value of out; 64 terms at a time, ascending.
template <Chunks kChunks, typename B, typename Index>
void AddWeightedSum(const WeightedSumProblem<B>& problem, Index index) {
  constexpr std::int64_t kChunk = kWeightedSumChunk;
  for (std::int64_t first = 0; first < problem.terms; first += kChunk) {
    const std::int64_t last = std::min(first + kChunk, problem.terms);
    ForTiles<Shape<4, 2>, Shape<1, 8>>(
        problem.rows, problem.width / kLanes,
        [&]<typename S>(S /*shape*/, std::int64_t row, std::int64_t vector) {
          const float* const weights = problem.weights + row * problem.weight_stride;
          const B* const b = problem.b + vector * kLanes;
          float* const out = problem.out + row * problem.out_stride + vector * kLanes;
          Tile<F32x8, S::kRows, S::kColumns> tile;
          tile.ForEach([&](std::int64_t i, std::int64_t v, F32x8& sum) {
            sum = kChunks == Chunks::kApart ? F32x8::Zero()
                                            : Load8(out + i * problem.out_stride + v * kLanes);
          });
          // Chained terms are of weights, which one row reads once: the next tile's are asked for.
          constexpr bool kAhead = kChunks == Chunks::kChained && S::kRows == 1;
          [[maybe_unused]] const std::int64_t ahead =
              vector + 2 * S::kColumns <= problem.width / kLanes
                  ? S::kColumns * kLanes
                  : kChunk * problem.b_stride - vector * kLanes;
          for (std::int64_t j = first; j < last; ++j) {
            const B* const term = b + index(j) * problem.b_stride;
            if constexpr (kAhead) {
              PrefetchBytes(term + ahead, S::kColumns * kLanes * std::int64_t{sizeof(B)});
            }
            tile.AddProducts(
                [&](std::int64_t i) { return F32x8::All(weights[i * problem.weight_stride + j]); },
                [&](std::int64_t v) { return Load8(term + v * kLanes); });
          }
          tile.ForEach([&](std::int64_t i, std::int64_t v, F32x8 sum) {
            float* const target = out + i * problem.out_stride + v * kLanes;
            Store8(target, kChunks == Chunks::kApart ? Load8(target) + sum : sum);
          });
        });
  }
}

}  // namespace dsa::cpu
