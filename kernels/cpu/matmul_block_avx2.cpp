// Four outputs at a time, a sum's four lanes in a vector: weights become doubles in registers for
// one or two rows, in a buffer for more.
#include "kernels/cpu/matmul_block.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/wide.h"

#include <type_traits>

namespace dsa::cpu {
namespace {

constexpr int kOutputs = 4;
static_assert(kOutputGroup % kOutputs == 0);

// Where weights come from: Read(n, k, body) calls body(i, weight) with columns k + 4 i .. k + 4 i +
// 3 of output n, kWideValues columns in all.  Exact: fp8 scales are in the inputs, or there are
// none.
template <typename T>
struct ExactWeights {
  const T* const* rows;
  std::int64_t ahead;
  template <typename Body>
  void Read(std::int64_t n, std::int64_t k, const Body& body) const {
    Prefetch(rows[n] + k + ahead);
    Widen(rows[n] + k, body);
  }
};
struct NormalWeights {
  const Fp8E4m3* const* rows;
  std::int64_t ahead;
  template <typename Body>
  void Read(std::int64_t n, std::int64_t k, const Body& body) const {
    Prefetch(rows[n] + k + ahead);
    WidenNormal(rows[n] + k, body);
  }
};
struct ScaledWeights {
  const Fp8E4m3* const* rows;
  std::int64_t ahead;
  F32x8 scale;
  template <typename Body>
  void Read(std::int64_t n, std::int64_t k, const Body& body) const {
    Prefetch(rows[n] + k + ahead);
    WidenScaled(rows[n] + k, scale, body);
  }
};

template <int kRows>
using SumTile = Tile<F64x4, kRows, kOutputs>;

double* SumOf(const BlockTask& task, std::int64_t row, std::int64_t n) {
  return task.sums + (row * kOutputGroup + n) * kDoubleLanes;
}

// The sums of a tile of rows from `row` on, before and after.
template <int kRows>
void LoadSums(const BlockTask& task, std::int64_t row, SumTile<kRows>& tile) {
  tile.ForEach(
      [&](std::int64_t r, std::int64_t n, F64x4& sum) { sum = Load4(SumOf(task, row + r, n)); });
}
template <int kRows>
void StoreSums(const BlockTask& task, std::int64_t row, SumTile<kRows>& tile) {
  tile.ForEach(
      [&](std::int64_t r, std::int64_t n, F64x4 sum) { Store4(SumOf(task, row + r, n), sum); });
}

// All of a few rows, with the weights straight from registers.
template <int kRows, typename Weights>
void AddFewRows(const Weights& weights, const BlockTask& task) {
  SumTile<kRows> tile;
  LoadSums(task, 0, tile);
  for (std::int64_t k = 0; k < task.columns; k += kWideValues) {
#pragma GCC unroll 4
    for (std::int64_t n = 0; n < kOutputs; ++n) {
      const double* x = task.inputs + k;
      // Reads x again for every output: kept, it would take the registers of the weights.
      asm("" : "+r"(x));
      weights.Read(n, k, [&](std::int64_t i, F64x4 weight) {
#pragma GCC unroll 4
        for (std::int64_t r = 0; r < kRows; ++r) {
          const F64x4 input = Load4(x + r * task.input_stride + i * kDoubleLanes);
          tile.sums[r][n] = MultiplyAdd(input, weight, tile.sums[r][n]);
        }
      });
    }
  }
  StoreSums(task, 0, tile);
}

// Rows that meet widened weights [kOutputs, kScaleBlock].
void AddManyRows(const double* weights, const BlockTask& task) {
  ForTiles<Shape<3, kOutputs>, Shape<2, kOutputs>, Shape<1, kOutputs>>(
      task.rows, kOutputs, [&]<typename S>(S /*shape*/, std::int64_t row, std::int64_t /*output*/) {
        if constexpr (S::kColumns == kOutputs) {
          const double* const inputs = task.inputs + row * task.input_stride;
          SumTile<S::kRows> tile;
          LoadSums(task, row, tile);
          for (std::int64_t k = 0; k < task.columns; k += kDoubleLanes) {
            tile.AddProducts(
                [&](std::int64_t r) { return Load4(inputs + r * task.input_stride + k); },
                [&](std::int64_t n) { return Load4(weights + n * kScaleBlock + k); });
          }
          StoreSums(task, row, tile);
        }
      });
}

template <typename Weights>
void AddOutputs(const Weights& weights, const BlockTask& task) {
  if (task.rows == 1) {
    return AddFewRows<1>(weights, task);
  }
  if (task.rows == 2) {
    return AddFewRows<2>(weights, task);
  }
  double widened[kOutputs * kScaleBlock];
  for (std::int64_t n = 0; n < kOutputs; ++n) {
    for (std::int64_t k = 0; k < task.columns; k += kWideValues) {
      double* const target = widened + n * kScaleBlock + k;
      weights.Read(
          n, k, [&](std::int64_t i, F64x4 weight) { Store4(target + i * kDoubleLanes, weight); });
    }
  }
  AddManyRows(widened, task);
}

bool AllRowsNormal(const Fp8E4m3* const* rows, std::int64_t columns) {
  for (std::int64_t n = 0; n < kOutputs; ++n) {
    if (!AllNormal(rows[n], columns)) {
      return false;
    }
  }
  return true;
}

template <typename T>
void AddEveryOutput(const WeightBlock<T>& weights, BlockTask task) {
  for (std::int64_t first = 0; first < weights.outputs; first += kOutputs) {
    const T* const* const rows = weights.rows + first;
    if constexpr (std::is_same_v<T, Fp8E4m3>) {
      if (weights.scale == 1.0F && AllRowsNormal(rows, task.columns)) {
        AddOutputs(NormalWeights{.rows = rows, .ahead = weights.ahead}, task);
      } else {
        AddOutputs(
            ScaledWeights{.rows = rows, .ahead = weights.ahead, .scale = F32x8::All(weights.scale)},
            task);
      }
    } else {
      AddOutputs(ExactWeights<T>{.rows = rows, .ahead = weights.ahead}, task);
    }
    task.sums += kOutputs * kDoubleLanes;
  }
}

}  // namespace

void AddBlockAvx2(const WeightBlock<float>& weights, const BlockTask& task) {
  AddEveryOutput(weights, task);
}
void AddBlockAvx2(const WeightBlock<Bf16>& weights, const BlockTask& task) {
  AddEveryOutput(weights, task);
}
void AddBlockAvx2(const WeightBlock<Fp8E4m3>& weights, const BlockTask& task) {
  AddEveryOutput(weights, task);
}

}  // namespace dsa::cpu
