#include "kernels/ops/routed_experts.h"

#include "common/check.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/swiglu.h"

#include <algorithm>

namespace dsa {
namespace {

// The expert of a pair as a place in the stacks, or -1 where it is not here.
std::int64_t PlaceOf(const RoutedExpertsParams& params, std::int64_t token, std::int64_t k) {
  const std::int64_t place = params.experts.Row(token)[k] - params.first_expert;
  return place >= 0 && place < params.gate.experts ? place : -1;
}

// Sorts the (token, k) pairs whose expert is here by expert, in ascending pair order within one.
void GroupByExpert(const RoutedExpertsParams& params, const RoutedExpertsExtents& extents,
                   const ExpertScratch& scratch) {
  const std::int64_t experts = params.gate.experts;
  const std::int64_t per_token = extents.experts_per_token;
  std::int32_t* offsets = scratch.offsets.data();
  std::fill_n(offsets, experts + 1, 0);
  for (std::int64_t t = 0; t < extents.tokens; ++t) {
    for (std::int64_t k = 0; k < per_token; ++k) {
      const std::int64_t expert = PlaceOf(params, t, k);
      if (expert >= 0) {
        ++offsets[expert + 1];
      }
    }
  }
  for (std::int64_t e = 0; e < experts; ++e) {
    offsets[e + 1] += offsets[e];
  }
  for (std::int64_t t = 0; t < extents.tokens; ++t) {
    for (std::int64_t k = 0; k < per_token; ++k) {
      const std::int64_t expert = PlaceOf(params, t, k);
      if (expert < 0) {
        continue;
      }
      // offsets[e] walks to the start of expert e + 1 and is shifted back below.
      const std::int32_t row = offsets[expert]++;
      scratch.tokens.data()[row] = static_cast<std::int32_t>(t);
      scratch.pairs.data()[row] = static_cast<std::int32_t>(t * per_token + k);
    }
  }
  for (std::int64_t e = experts; e > 0; --e) {
    offsets[e] = offsets[e - 1];
  }
  offsets[0] = 0;
}

// The rows of expert `e` through one of its three projections.
MatmulProblem ExpertProblem(const StackedWeight& weight, std::int64_t e,
                            const ExpertScratch& scratch) {
  const std::int64_t scales_per_expert = Fp8Blocks(weight.rows) * Fp8Blocks(weight.cols);
  return {
      .x = {},
      .weight = {.data = Offset(weight.data, weight.type, e * weight.rows * weight.cols),
                 .type = weight.type,
                 .row_stride = weight.cols,
                 .scales =
                     weight.scales == nullptr ? nullptr : weight.scales + e * scales_per_expert,
                 .scale_stride = Fp8Blocks(weight.cols)},
      .y = nullptr,
      .y_type = DataType::kF32,
      .y_row_stride = weight.rows,
      .rows = scratch.offsets.data()[e + 1] - scratch.offsets.data()[e],
      .inputs = weight.cols,
      .outputs = weight.rows,
  };
}

// x[token] -> gate and up, one row per pair.
MatmulProblem InnerProblem(const RoutedExpertsParams& params, const StackedWeight& weight,
                           std::int64_t e, const ExpertScratch& scratch) {
  MatmulProblem problem = ExpertProblem(weight, e, scratch);
  if (weight.type == DataType::kFp8E4m3) {
    problem.x = {.data = scratch.inputs.data(),
                 .type = DataType::kFp8E4m3,
                 .row_stride = weight.cols,
                 .scales = scratch.input_scales.data(),
                 .scale_stride = Fp8Blocks(weight.cols)};
  } else {
    problem.x = {.data = params.x.data, .type = params.x.type, .row_stride = params.x.row_stride};
  }
  const std::int64_t first = scratch.offsets.data()[e];
  problem.x.indices = scratch.tokens.data() + first;
  float* target = &weight == &params.gate ? scratch.gate.data() : scratch.up.data();
  problem.y_type = params.x.type;
  problem.y = Offset(target, problem.y_type, first * weight.rows);
  return problem;
}

// SwiGLU output -> contribution of each pair, at [token, k].
MatmulProblem OuterProblem(const RoutedExpertsParams& params, std::int64_t e,
                           const ExpertScratch& scratch) {
  const StackedWeight& weight = params.down;
  MatmulProblem problem = ExpertProblem(weight, e, scratch);
  const std::int64_t first = scratch.offsets.data()[e];
  if (weight.type == DataType::kFp8E4m3) {
    problem.x = {.data = scratch.inner.data() + first * weight.cols,
                 .type = DataType::kFp8E4m3,
                 .row_stride = weight.cols,
                 .scales = scratch.inner_scales.data() + first * Fp8Blocks(weight.cols),
                 .scale_stride = Fp8Blocks(weight.cols)};
  } else {
    problem.x = {.data = Offset(scratch.gate.data(), params.x.type, first * weight.cols),
                 .type = params.x.type,
                 .row_stride = weight.cols};
  }
  problem.y_type = params.y.type;
  problem.y = params.contributions.data != nullptr ? params.contributions.data
                                                   : scratch.contributions.data();
  problem.y_indices = scratch.pairs.data() + first;
  return problem;
}

// Units [first, last) of the concatenated units of `count` problems.
template <typename ProblemAt>
std::int64_t CountUnits(std::int64_t count, const ProblemAt& problem_at) {
  std::int64_t units = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    units += MatmulUnits(problem_at(i));
  }
  return units;
}
template <typename ProblemAt>
void RunUnits(std::int64_t first, std::int64_t last, const ProblemAt& problem_at,
              const MatmulScratch& scratch) {
  for (std::int64_t i = 0; first < last; ++i) {
    const MatmulProblem problem = problem_at(i);
    const std::int64_t units = MatmulUnits(problem);
    if (first < units) {
      RunMatmulUnits(problem, first, std::min(last, units), scratch);
    }
    first = std::max<std::int64_t>(first - units, 0);
    last -= units;
  }
}

// SwiGLU of one pair, rounded to the activation type, and quantized for fp8 experts.
void ActivateRow(const RoutedExpertsParams& params, std::int64_t row, const CpuScratch& scratch,
                 float* values) {
  const std::int64_t width = params.gate.rows;
  const DataType type = params.x.type;
  const ExpertScratch& experts = scratch.experts;
  void* gate = Offset(experts.gate.data(), type, row * width);
  const void* up = Offset(experts.up.data(), type, row * width);
  RunSwiGluRow({.gate = gate, .up = up, .target = gate, .type = type, .count = width});
  if (params.down.type == DataType::kFp8E4m3) {
    LoadRow(gate, type, width, values);
    QuantizeRow(values, width, params.scale_format,
                {.values = reinterpret_cast<Fp8E4m3*>(experts.inner.data()) + row * width,
                 .scales = experts.inner_scales.data() + row * Fp8Blocks(width)});
  }
}

// y[t] = sum over k of weight * contribution, the shared expert last.
void CombineRow(const RoutedExpertsParams& params, const RoutedExpertsExtents& extents,
                std::int64_t token, const CpuScratch& scratch, float* sums) {
  const std::int64_t hidden = extents.hidden;
  const DataType type = params.x.type;
  std::fill_n(sums, hidden, 0.0F);
  for (std::int64_t k = 0; k < extents.experts_per_token; ++k) {
    if (PlaceOf(params, token, k) < 0) {
      continue;
    }
    const void* row = Offset(scratch.experts.contributions.data(), type,
                             (token * extents.experts_per_token + k) * hidden);
    AddScaledRow(row, type, params.weights.Row(token)[k], hidden, sums);
  }
  if (params.shared.data != nullptr) {
    AddScaledRow(RowOf(params.shared, token), type, 1.0F, hidden, sums);
  }
  StoreRow(sums, hidden, RowOf(params.y, token), type);
}

// The same as a sum that is not rounded, nor are the contributions.
void CombinePartialRow(const RoutedExpertsParams& params, const RoutedExpertsExtents& extents,
                       std::int64_t token, const CpuScratch& scratch) {
  const std::int64_t hidden = extents.hidden;
  const auto* const contributions =
      reinterpret_cast<const double*>(scratch.experts.contributions.data());
  auto* const y = static_cast<double*>(RowOf(params.y, token));
  for (std::int64_t d = 0; d < hidden; ++d) {
    double sum = 0.0;
    for (std::int64_t k = 0; k < extents.experts_per_token; ++k) {
      if (PlaceOf(params, token, k) >= 0) {
        const std::int64_t pair = token * extents.experts_per_token + k;
        sum += double{params.weights.Row(token)[k]} * contributions[pair * hidden + d];
      }
    }
    if (params.shared.data != nullptr) {
      sum += static_cast<const double*>(RowOf(params.shared, token))[d];
    }
    y[d] = sum;
  }
}

void QuantizeInputs(const RoutedExpertsParams& params, std::int64_t token,
                    const CpuScratch& scratch, float* values) {
  const std::int64_t hidden = params.gate.cols;
  const ExpertScratch& experts = scratch.experts;
  LoadRow(RowOf(params.x, token), params.x.type, hidden, values);
  QuantizeRow(values, hidden, params.scale_format,
              {.values = reinterpret_cast<Fp8E4m3*>(experts.inputs.data()) + token * hidden,
               .scales = experts.input_scales.data() + token * Fp8Blocks(hidden)});
}

}  // namespace

void CpuBackend::Compute(const RoutedExpertsParams& params) {
  const auto extents = Validate(params);
  DSA_CHECK(params.y.type == params.x.type || params.y.type == DataType::kF64,
            "RoutedExperts: y has type {}, expected that of x, {}, or f64",
            static_cast<int>(params.y.type), static_cast<int>(params.x.type));
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  const ExpertScratch& experts = scratch.experts;
  const std::int64_t pairs = extents.tokens * extents.experts_per_token;
  DSA_CHECK(
      pairs <= experts.pairs.size() && params.gate.experts < experts.offsets.size() &&
          extents.width <= scratch.limits.expert_width && extents.hidden <= scratch.limits.hidden &&
          (params.y.type != DataType::kF64 || scratch.limits.expert_sum_type == DataType::kF64),
      "RoutedExperts: {} pairs, E={}, I={}, D={} exceed the scratch", pairs, params.gate.experts,
      extents.width, extents.hidden);
  GroupByExpert(params, extents, experts);

  // Quantized inputs.
  if (params.gate.type == DataType::kFp8E4m3) {
    pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int thread) {
      for (std::int64_t t = first; t < last; ++t) {
        QuantizeInputs(params, t, scratch, scratch.Row(thread, extents.hidden));
      }
    });
  }

  // Gate and up: problem 2e is the gate of expert e, 2e + 1 its up projection.
  const auto inner = [&](std::int64_t i) {
    return InnerProblem(params, i % 2 == 0 ? params.gate : params.up, i / 2, experts);
  };
  const std::int64_t inner_units = CountUnits(2 * params.gate.experts, inner);
  pool_.ParallelFor(inner_units, [&](std::int64_t first, std::int64_t last, int thread) {
    RunUnits(first, last, inner, scratch.matmul[static_cast<std::size_t>(thread)]);
  });

  // SwiGLU.
  const std::int64_t grouped = experts.offsets.data()[params.gate.experts];
  pool_.ParallelFor(grouped, [&](std::int64_t first, std::int64_t last, int thread) {
    for (std::int64_t row = first; row < last; ++row) {
      ActivateRow(params, row, scratch, scratch.Row(thread, extents.width));
    }
  });

  // Down.
  const auto outer = [&](std::int64_t e) { return OuterProblem(params, e, experts); };
  const std::int64_t outer_units = CountUnits(params.gate.experts, outer);
  pool_.ParallelFor(outer_units, [&](std::int64_t first, std::int64_t last, int thread) {
    RunUnits(first, last, outer, scratch.matmul[static_cast<std::size_t>(thread)]);
  });

  if (params.contributions.data != nullptr) {
    return;
  }

  // Weighted sum.
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int thread) {
    for (std::int64_t t = first; t < last; ++t) {
      if (params.y.type == DataType::kF64) {
        CombinePartialRow(params, extents, t, scratch);
      } else {
        CombineRow(params, extents, t, scratch, scratch.Row(thread, extents.hidden));
      }
    }
  });
}

}  // namespace dsa
