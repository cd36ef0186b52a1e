// Linear and BlockScaledLinear: the small model's projections (hidden 384) and one of the large
// model's experts, for decode (T = 1) and prefill.
#include "bench/kernels/kernel_bench.h"
#include "common/view.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/linear.h"

#include <fmt/core.h>

namespace dsa::bench {
namespace {

struct Shape {
  std::int64_t tokens;
  std::int64_t outputs;
  std::int64_t inputs;
};

std::string Describe(const Shape& shape) {
  return fmt::format("T={} N={} K={}", shape.tokens, shape.outputs, shape.inputs);
}

Work WorkOf(const Shape& shape, double weight_bytes) {
  const auto tokens = static_cast<double>(shape.tokens);
  const auto outputs = static_cast<double>(shape.outputs);
  const auto inputs = static_cast<double>(shape.inputs);
  return {.bytes = weight_bytes * (outputs * inputs + tokens * inputs) + 2.0 * tokens * outputs,
          .flops = 2.0 * tokens * outputs * inputs};
}

void BenchBf16(Backend& backend, const Report& report, const Shape& shape) {
  const auto x = RandomMatrix(backend, DataType::kBf16, shape.tokens, shape.inputs);
  const auto weight = RandomMatrix(backend, DataType::kBf16, shape.outputs, shape.inputs);
  const auto y = RandomMatrix(backend, DataType::kBf16, shape.tokens, shape.outputs);
  const LinearParams params{.x = x.view, .weight = weight.view, .y = y.view};
  report.Row("linear_bf16", Describe(shape), Measure([&] { backend.Linear(params); }),
             WorkOf(shape, 2.0));
}

// Both forms of kernels/cpu/matmul.h: with power-of-two scales, as DeepSeek-V3.2's, and with
// others.
void BenchFp8(Backend& backend, const Report& report, const Shape& shape, ScaleFormat format) {
  const auto x = RandomMatrix(backend, DataType::kFp8E4m3, shape.tokens, shape.inputs);
  const auto weight = RandomMatrix(backend, DataType::kFp8E4m3, shape.outputs, shape.inputs);
  const auto y = RandomMatrix(backend, DataType::kBf16, shape.tokens, shape.outputs);
  const std::int64_t columns = Fp8Blocks(shape.inputs);
  const auto x_scales = RandomScales(backend, shape.tokens * columns, format);
  const auto weight_scales = RandomScales(backend, Fp8Blocks(shape.outputs) * columns, format);
  const BlockScaledLinearParams params{
      .x = {.data = x.buffer.As<const Fp8E4m3>(),
            .rows = shape.tokens,
            .cols = shape.inputs,
            .row_stride = shape.inputs},
      .x_scales = {.data = x_scales.As<const float>(),
                   .rows = shape.tokens,
                   .cols = columns,
                   .row_stride = columns},
      .weight = {.data = weight.buffer.As<const Fp8E4m3>(),
                 .rows = shape.outputs,
                 .cols = shape.inputs,
                 .row_stride = shape.inputs},
      .weight_scales = {.data = weight_scales.As<const float>(),
                        .rows = Fp8Blocks(shape.outputs),
                        .cols = columns,
                        .row_stride = columns},
      .y = y.view,
  };
  report.Row(format == ScaleFormat::kPowerOfTwo ? "linear_fp8" : "linear_fp8_plain",
             Describe(shape), Measure([&] { backend.BlockScaledLinear(params); }),
             WorkOf(shape, 1.0));
}

}  // namespace

void BenchLinear(Backend& backend, const Report& report) {
  report.Heading("projections");
  for (const std::int64_t tokens : {1, 8, 64, 512}) {
    for (const auto& [outputs, inputs] :
         {std::pair<std::int64_t, std::int64_t>{384, 384}, {1536, 384}, {7168, 2048}}) {
      BenchFp8(backend, report, {.tokens = tokens, .outputs = outputs, .inputs = inputs},
               ScaleFormat::kPowerOfTwo);
    }
  }
  for (const std::int64_t tokens : {1, 64}) {
    BenchFp8(backend, report, {.tokens = tokens, .outputs = 7168, .inputs = 2048},
             ScaleFormat::kPlain);
  }
  for (const std::int64_t tokens : {1, 8}) {  // DeepSeek-V3.2's widest: q_b and o
    BenchFp8(backend, report, {.tokens = tokens, .outputs = 24576, .inputs = 1536},
             ScaleFormat::kPowerOfTwo);
    BenchFp8(backend, report, {.tokens = tokens, .outputs = 7168, .inputs = 16384},
             ScaleFormat::kPowerOfTwo);
  }
  for (const std::int64_t tokens : {1, 64}) {
    BenchBf16(backend, report, {.tokens = tokens, .outputs = 1536, .inputs = 384});
    BenchBf16(backend, report, {.tokens = tokens, .outputs = 16384, .inputs = 384});
  }
}

}  // namespace dsa::bench
