//   y[t, n] = round(sum over k of (x[t, k] * x_scale) * (W[n, k] * w_scale))
//
// A tile of rows meets a few outputs at a time, a block of 128 columns after the other
// (matmul_block.h).  Sums are of doubles: weights become doubles there, inputs once per tile.
#include "kernels/cpu/matmul.h"

#include "common/check.h"
#include "kernels/cpu/matmul_block.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/wide.h"

#include <algorithm>
#include <bit>

namespace dsa {
namespace {

using cpu::BlockTask;
using cpu::kWideValues;

constexpr std::int64_t kBlock = cpu::kScaleBlock;
constexpr int kGroup = cpu::kOutputGroup;
constexpr std::int64_t kRowTile = 32;  // rows of x that meet widened weights
constexpr std::int64_t kRowGroup = 4;  // of them are computed together (matmul_block_avx512.cpp)
constexpr std::int64_t kAheadBytes = 8192;  // of weights that are asked for before they are read
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

// The rows in as few tiles as hold them and of about the same size, so that threads get equal
// shares: whole groups of kRowGroup but in the last.
InputTile TileAt(const MatmulProblem& problem, std::int64_t index) {
  const std::int64_t tiles = CeilDivide(problem.rows, kRowTile);
  const auto begin = [&](std::int64_t tile) {
    return std::min(problem.rows, CeilDivide(problem.rows * tile, tiles * kRowGroup) * kRowGroup);
  };
  return {.first_row = begin(index), .rows = begin(index + 1) - begin(index)};
}

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
      for (std::int64_t first = 0; first < stride; first += kBlock) {
        const F32x8 scale = F32x8::All(x.scales[row * x.scale_stride + first / kBlock]);
        for (std::int64_t k = first; k < std::min(first + kBlock, stride); k += kLanes) {
          Store8(values + k, Load8(values + k) * scale);
        }
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
    for (std::int64_t first = 0; first < stride; first += kBlock) {
      const F64x4 scale = F64x4::All(scales == nullptr ? 1.0 : double{scales[first / kBlock]});
      for (std::int64_t k = first; k < std::min(first + kBlock, stride); k += kDoubleLanes) {
        Store4(target + r * stride + k, Load4(inputs + r * stride + k) * scale);
      }
    }
  }
}

// A group of outputs.
struct OutputGroup {
  std::int64_t first;
  std::int64_t count;
  const float* scales;  // that weights are multiplied by here, or null
  std::int64_t ahead;   // weights so many elements further are read soon; 0: none
};

// sums[n] is that of the group's n-th output: kept, or rounded to float32 and then to the type of
// y.
void StoreValues(const MatmulProblem& problem, std::int64_t row, const OutputGroup& group,
                 const double* sums) {
  const std::int64_t target_row = problem.y_indices == nullptr ? row : problem.y_indices[row];
  void* target = Offset(problem.y, problem.y_type, target_row * problem.y_row_stride + group.first);
  if (problem.y_type == DataType::kF64) {
    std::copy_n(sums, group.count, static_cast<double*>(target));
    return;
  }
  float values[kGroup];
  for (std::int64_t n = 0; n < kGroup; ++n) {
    values[n] = static_cast<float>(sums[n]);
  }
  if (group.count == kLanes) {
    StoreRow(values, kLanes, target, problem.y_type);
    return;
  }
  for (std::int64_t n = 0; n < group.count; ++n) {
    if (problem.y_type == DataType::kF32) {
      static_cast<float*>(target)[n] = values[n];
    } else {
      static_cast<Bf16*>(target)[n] = ToBf16(values[n]);
    }
  }
}

template <typename T>
void SumGroup(const MatmulProblem& problem, const T* first, const OutputGroup& group,
              cpu::CpuLevel level, BlockTask task) {
  const double* const inputs = task.inputs;
  cpu::WeightBlock<T> weights{.rows = {}, .outputs = group.count, .scale = 1.0F, .ahead = 0};
  T padded[kGroup][kBlock];
  for (std::int64_t column = 0; column < problem.inputs; column += kBlock) {
    const std::int64_t width = std::min(kBlock, problem.inputs - column);
    for (std::int64_t n = 0; n < kGroup; ++n) {
      const T*& row = weights.rows[n];
      row = first + std::min(n, group.count - 1) * problem.weight.row_stride + column;
      if (width % kWideValues != 0) {
        std::fill(std::copy_n(row, width, padded[n]), std::end(padded[n]), T{});
        row = padded[n];
      }
    }
    if (group.scales != nullptr) {
      weights.scale = group.scales[column / kBlock];
    }
    weights.ahead = width % kWideValues == 0 ? group.ahead : 0;
    task.inputs = inputs + column;
    task.columns = Padded(width);
    AddBlock(level, weights, task);
  }
}

void RunGroup(const MatmulProblem& problem, const InputTile& tile, const OutputGroup& group,
              cpu::CpuLevel level, const MatmulScratch& scratch) {
  alignas(64) double sums[kRowTile * kGroup * kDoubleLanes];
  std::fill_n(sums, tile.rows * kGroup * kDoubleLanes, 0.0);
  const BlockTask task = {.inputs = scratch.wide_inputs.data(),
                          .input_stride = Padded(problem.inputs),
                          .rows = tile.rows,
                          .columns = 0,
                          .sums = sums};
  const MatmulRows& weight = problem.weight;
  VisitType(Offset(weight.data, weight.type, group.first * weight.row_stride), weight.type,
            [&](const auto* first) { SumGroup(problem, first, group, level, task); });
  for (std::int64_t r = 0; r < tile.rows; ++r) {
    double values[kGroup];
    for (std::int64_t n = 0; n < kGroup; ++n) {
      values[n] = ReduceSum(Load4(sums + (r * kGroup + n) * kDoubleLanes));
    }
    StoreValues(problem, tile.first_row + r, group, values);
  }
}

// How many outputs ahead of those that are computed weights are asked for: whole groups.
std::int64_t OutputsAhead(const MatmulRows& weight) {
  return CeilDivide(kAheadBytes,
                    kGroup * std::max<std::int64_t>(1, weight.row_stride) * SizeOf(weight.type)) *
         kGroup;
}

// Asks for the weights of outputs first .. last - 1.
void PrefetchOutputs(const MatmulRows& weight, std::int64_t first, std::int64_t last) {
  const void* const begin = Offset(weight.data, weight.type, first * weight.row_stride);
  const std::int64_t bytes = (last - first) * weight.row_stride * SizeOf(weight.type);
  cpu::PrefetchBytes(begin, std::min(bytes, kAheadBytes));
}

}  // namespace

std::int64_t MatmulUnits(const MatmulProblem& problem) {
  return CeilDivide(problem.rows, kRowTile) * CeilDivide(problem.outputs, kGroup);
}

void RunMatmulUnits(const MatmulProblem& problem, std::int64_t first, std::int64_t last,
                    const MatmulScratch& scratch, cpu::CpuLevel level) {
  DSA_CHECK(kRowTile * Padded(problem.inputs) <= scratch.inputs.size(),
            "matrix product: K={} exceeds the scratch, sized for {}", problem.inputs,
            scratch.inputs.size() / kRowTile);
  const std::int64_t groups = CeilDivide(problem.outputs, kGroup);
  const std::int64_t outputs_ahead = OutputsAhead(problem.weight);
  std::int64_t tile_index = -1;
  InputTile tile{};
  const float* widened_with = nullptr;   // the scales of the weights that wide_inputs are for
  const float* weight_scales = nullptr;  // those that stay with the weights
  for (std::int64_t unit = first; unit < last; ++unit) {
    const std::int64_t output = unit % groups * kGroup;
    const std::int64_t outputs_end = std::min(problem.outputs, output + (last - unit) * kGroup);
    const float* const scales = ScalesOf(problem.weight, output);
    const bool new_tile = unit / groups != tile_index;
    if (new_tile) {
      tile_index = unit / groups;
      PrefetchOutputs(problem.weight, output, outputs_end);
      tile = TileAt(problem, tile_index);
      DecodeInputs(problem, tile, scratch.inputs.data());
    }
    if (new_tile || scales != widened_with) {
      const bool exact = scales == nullptr || AllScaleExactly(scales, problem.inputs);
      weight_scales = exact ? nullptr : scales;
      WidenInputs(scratch.inputs.data(), exact ? scales : nullptr, tile.rows, problem.inputs,
                  scratch.wide_inputs.data());
      widened_with = scales;
    }
    const bool more = output + outputs_ahead < outputs_end;
    RunGroup(problem, tile,
             {.first = output,
              .count = std::min<std::int64_t>(kGroup, problem.outputs - output),
              .scales = weight_scales,
              .ahead = more ? outputs_ahead * problem.weight.row_stride : 0},
             level, scratch);
  }
}

MatmulScratch MakeMatmulScratch(std::int64_t inputs_max, ScratchMaker& maker) {
  MatmulScratch scratch;
  scratch.inputs = maker.Array<float>(kRowTile * Padded(inputs_max));
  scratch.wide_inputs = maker.Array<double>(kRowTile * Padded(inputs_max));
  return scratch;
}

}  // namespace dsa
