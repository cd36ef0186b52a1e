//   y[t, n] = round(sum over k of (x[t, k] * x_scale) * (W[n, k] * w_scale))
//
// A tile of rows meets four outputs at a time, a block of 128 columns after the other.  Sums are of
// doubles: weights become doubles in registers, inputs once per tile.
#include "kernels/cpu/matmul.h"

#include "common/check.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/wide.h"

#include <algorithm>
#include <bit>
#include <type_traits>

namespace dsa {
namespace {

using cpu::kWideValues;

constexpr std::int64_t kBlock = 128;   // columns and outputs that share a scale
constexpr std::int64_t kRowTile = 32;  // rows of x that meet widened weights
constexpr int kGroup = 4;              // outputs that are computed together
static_assert(kBlock % kGroup == 0, "the outputs of a group share a scale");
static_assert(kBlock % kWideValues == 0);

constexpr std::int64_t CeilDivide(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
constexpr std::int64_t Padded(std::int64_t columns) {
  return CeilDivide(columns, kWideValues) * kWideValues;
}

struct InputTile {
  std::int64_t first_row;
  std::int64_t rows;
};

// The inputs of a tile as float32, times their scales: each product rounded. Padded with zeros.
void DecodeInputs(const MatmulProblem& problem, const InputTile& tile, float* target) {
  const MatmulRows& x = problem.x;
  const std::int64_t stride = Padded(problem.inputs);
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    const std::int64_t row =
        x.indices == nullptr ? tile.first_row + r : x.indices[tile.first_row + r];
    float* const values = target + r * stride;
    LoadRow(Offset(x.data, x.type, row * x.row_stride), x.type, problem.inputs, values);
    std::fill(values + problem.inputs, values + stride, 0.0F);
    if (x.scales != nullptr) {
      for (std::int64_t k = 0; k < problem.inputs; ++k) {
        values[k] *= x.scales[row * x.scale_stride + k / kBlock];
      }
    }
  }
}

// The scales of kBlock outputs [ceil(K / 128)]; null where weights have none.
const float* ScalesOf(const MatmulRows& weight, std::int64_t output) {
  return weight.scales == nullptr ? nullptr : weight.scales + output / kBlock * weight.scale_stride;
}

// Whether every fp8 value times `scale` is exact in float32: a power of two that takes none beyond
// the largest float.
bool ScalesExactly(float scale) {
  return (std::bit_cast<std::uint32_t>(scale) & 0x807FFFFFU) == 0 && scale <= 0x1p119F;
}

bool AllScaleExactly(const float* scales, std::int64_t inputs) {
  return std::all_of(scales, scales + CeilDivide(inputs, kBlock), ScalesExactly);
}

// The decoded inputs as doubles.  The scales of weights go here where that changes no product: x
// times (w times scale) is (x times scale) times w, if neither is rounded.  Null: none do.
void WidenInputs(const float* inputs, const float* scales, std::int64_t rows, std::int64_t columns,
                 double* target) {
  const std::int64_t stride = Padded(columns);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t k = 0; k < stride; k += kDoubleLanes) {
      const double scale = scales == nullptr || k >= columns ? 1.0 : double{scales[k / kBlock]};
      Store4(target + r * stride + k, Load4(inputs + r * stride + k) * F64x4::All(scale));
    }
  }
}

// Where a group's weights come from: Read(n, k, body) calls body(i, weight) with columns k + 4 i ..
// k + 4 i + 3 of output n, kWideValues columns in all.  Exact: fp8 scales are in the inputs, or
// there are none.
template <typename T>
struct ExactWeights {
  const T* const* rows;
  template <typename Body>
  void Read(std::int64_t n, std::int64_t k, const Body& body) const {
    cpu::Widen(rows[n] + k, body);
  }
};
struct NormalWeights {
  const Fp8E4m3* const* rows;
  template <typename Body>
  void Read(std::int64_t n, std::int64_t k, const Body& body) const {
    cpu::WidenNormal(rows[n] + k, body);
  }
};
struct ScaledWeights {
  const Fp8E4m3* const* rows;
  F32x8 scale;
  template <typename Body>
  void Read(std::int64_t n, std::int64_t k, const Body& body) const {
    cpu::WidenScaled(rows[n] + k, scale, body);
  }
};
// One block of a tile: sums[r][n] += x[r] . w[n].
struct BlockTask {
  const double* inputs;  // [rows, input_stride]
  std::int64_t input_stride;
  std::int64_t rows;
  std::int64_t columns;  // of this block, a multiple of kWideValues
  double* sums;          // [rows, kGroup, kDoubleLanes]
};

template <int kRows>
using SumTile = cpu::Tile<F64x4, kRows, kGroup>;

// The sums of a tile of rows from `row` on, before and after.
template <int kRows>
void LoadSums(const BlockTask& task, std::int64_t row, SumTile<kRows>& tile) {
  tile.ForEach([&](std::int64_t r, std::int64_t n, F64x4& sum) {
    sum = Load4(task.sums + ((row + r) * kGroup + n) * kDoubleLanes);
  });
}
template <int kRows>
void StoreSums(const BlockTask& task, std::int64_t row, SumTile<kRows>& tile) {
  tile.ForEach([&](std::int64_t r, std::int64_t n, F64x4 sum) {
    Store4(task.sums + ((row + r) * kGroup + n) * kDoubleLanes, sum);
  });
}

// All of a few rows, with the weights straight from registers.
template <int kRows, typename Weights>
void AddFewRows(const Weights& weights, const BlockTask& task) {
  SumTile<kRows> tile;
  LoadSums(task, 0, tile);
  for (std::int64_t k = 0; k < task.columns; k += kWideValues) {
#pragma GCC unroll 4
    for (std::int64_t n = 0; n < kGroup; ++n) {
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

// Rows that meet widened weights [kGroup, kBlock].
void AddManyRows(const double* weights, const BlockTask& task) {
  cpu::ForTiles<cpu::Shape<3, kGroup>, cpu::Shape<2, kGroup>, cpu::Shape<1, kGroup>>(
      task.rows, kGroup, [&]<typename S>(S /*shape*/, std::int64_t row, std::int64_t /*output*/) {
        if constexpr (S::kColumns == kGroup) {
          const double* const inputs = task.inputs + row * task.input_stride;
          SumTile<S::kRows> tile;
          LoadSums(task, row, tile);
          for (std::int64_t k = 0; k < task.columns; k += kDoubleLanes) {
            tile.AddProducts(
                [&](std::int64_t r) { return Load4(inputs + r * task.input_stride + k); },
                [&](std::int64_t n) { return Load4(weights + n * kBlock + k); });
          }
          StoreSums(task, row, tile);
        }
      });
}

template <typename Weights>
void AddBlock(const Weights& weights, const BlockTask& task) {
  if (task.rows == 1) {
    return AddFewRows<1>(weights, task);
  }
  if (task.rows == 2) {
    return AddFewRows<2>(weights, task);
  }
  double widened[kGroup * kBlock];
  for (std::int64_t n = 0; n < kGroup; ++n) {
    for (std::int64_t k = 0; k < task.columns; k += kWideValues) {
      double* const target = widened + n * kBlock + k;
      weights.Read(
          n, k, [&](std::int64_t i, F64x4 weight) { Store4(target + i * kDoubleLanes, weight); });
    }
  }
  AddManyRows(widened, task);
}

// `rows` are those of kGroup outputs, from the block's first column on. `scale` is what their
// values are multiplied by here.
template <typename T>
void AddWeights(const T* const* rows, float scale, const BlockTask& task) {
  if constexpr (std::is_same_v<T, Fp8E4m3>) {
    bool normal = scale == 1.0F;
    for (std::int64_t n = 0; normal && n < kGroup; ++n) {
      normal = cpu::AllNormal(rows[n], task.columns);
    }
    if (normal) {
      AddBlock(NormalWeights{.rows = rows}, task);
    } else {
      AddBlock(ScaledWeights{.rows = rows, .scale = F32x8::All(scale)}, task);
    }
  } else {
    AddBlock(ExactWeights<T>{.rows = rows}, task);
  }
}

// values[n] is that of output + n.
void StoreValues(const MatmulProblem& problem, std::int64_t row, std::int64_t output,
                 const float* values) {
  const std::int64_t target_row = problem.y_indices == nullptr ? row : problem.y_indices[row];
  const std::int64_t count = std::min<std::int64_t>(kGroup, problem.outputs - output);
  void* target = Offset(problem.y, problem.y_type, target_row * problem.y_row_stride + output);
  for (std::int64_t n = 0; n < count; ++n) {
    if (problem.y_type == DataType::kF32) {
      static_cast<float*>(target)[n] = values[n];
    } else {
      static_cast<Bf16*>(target)[n] = ToBf16(values[n]);
    }
  }
}

// The sums of kGroup outputs, the first of which has its weights at `first`.
template <typename T>
void SumGroup(const MatmulProblem& problem, const T* first, std::int64_t outputs,
              const float* scales, BlockTask task) {
  const double* const inputs = task.inputs;
  T padded[kGroup][kBlock];
  for (std::int64_t column = 0; column < problem.inputs; column += kBlock) {
    const std::int64_t width = std::min(kBlock, problem.inputs - column);
    const T* rows[kGroup];
    for (std::int64_t n = 0; n < kGroup; ++n) {  // beyond the last, the last again
      rows[n] = first + std::min(n, outputs - 1) * problem.weight.row_stride + column;
      if (width % kWideValues != 0) {
        std::fill(std::copy_n(rows[n], width, padded[n]), std::end(padded[n]), T{});
        rows[n] = padded[n];
      }
    }
    task.inputs = inputs + column;
    task.columns = Padded(width);
    AddWeights(rows, scales == nullptr ? 1.0F : scales[column / kBlock], task);
  }
}

// kGroup outputs of a tile.  `scales` are those that weights are multiplied by here, or null.
void RunGroup(const MatmulProblem& problem, const InputTile& tile, std::int64_t output,
              const float* scales, const MatmulScratch& scratch) {
  double sums[kRowTile * kGroup * kDoubleLanes];
  std::fill_n(sums, tile.rows * kGroup * kDoubleLanes, 0.0);
  const BlockTask task = {.inputs = scratch.wide_inputs.data(),
                          .input_stride = Padded(problem.inputs),
                          .rows = tile.rows,
                          .columns = 0,
                          .sums = sums};
  const MatmulRows& weight = problem.weight;
  VisitType(Offset(weight.data, weight.type, output * weight.row_stride), weight.type,
            [&](const auto* first) {
              SumGroup(problem, first, std::min<std::int64_t>(kGroup, problem.outputs - output),
                       scales, task);
            });
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    float values[kGroup];
    for (std::int64_t n = 0; n < kGroup; ++n) {
      values[n] = static_cast<float>(ReduceSum(Load4(sums + (r * kGroup + n) * kDoubleLanes)));
    }
    StoreValues(problem, tile.first_row + r, output, values);
  }
}

}  // namespace

std::int64_t MatmulUnits(const MatmulProblem& problem) {
  return CeilDivide(problem.rows, kRowTile) * CeilDivide(problem.outputs, kGroup);
}

void RunMatmulUnits(const MatmulProblem& problem, std::int64_t first, std::int64_t last,
                    const MatmulScratch& scratch) {
  DSA_CHECK(kRowTile * Padded(problem.inputs) <= scratch.inputs.size(),
            "matrix product: K={} exceeds the scratch, sized for {}", problem.inputs,
            scratch.inputs.size() / kRowTile);
  const std::int64_t groups = CeilDivide(problem.outputs, kGroup);
  InputTile tile{.first_row = -1, .rows = 0};
  const float* widened_with = nullptr;   // the scales of the weights that wide_inputs are for
  const float* weight_scales = nullptr;  // those that stay with the weights
  for (std::int64_t unit = first; unit < last; ++unit) {
    const std::int64_t first_row = unit / groups * kRowTile;
    const std::int64_t output = unit % groups * kGroup;
    const float* const scales = ScalesOf(problem.weight, output);
    const bool new_tile = first_row != tile.first_row;
    if (new_tile) {
      tile = {.first_row = first_row, .rows = std::min(kRowTile, problem.rows - first_row)};
      DecodeInputs(problem, tile, scratch.inputs.data());
    }
    if (new_tile || scales != widened_with) {
      const bool exact = scales == nullptr || AllScaleExactly(scales, problem.inputs);
      weight_scales = exact ? nullptr : scales;
      WidenInputs(scratch.inputs.data(), exact ? scales : nullptr, tile.rows, problem.inputs,
                  scratch.wide_inputs.data());
      widened_with = scales;
    }
    RunGroup(problem, tile, output, weight_scales, scratch);
  }
}

MatmulScratch MakeMatmulScratch(std::int64_t inputs_max, ScratchMaker& maker) {
  MatmulScratch scratch;
  scratch.inputs = maker.Array<float>(kRowTile * Padded(inputs_max));
  scratch.wide_inputs = maker.Array<double>(kRowTile * Padded(inputs_max));
  return scratch;
}

}  // namespace dsa
