// BlockScaledLinear at DeepSeek-V3.2's projections, and Linear at the two that stay in bf16.
#include "bench/cuda/device_bench.h"
#include "common/view.h"
#include "kernels/ops/linear.h"

#include <algorithm>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

struct Projection {
  std::int64_t outputs;
  std::int64_t inputs;
  const char* name;
};

std::string Describe(std::int64_t tokens, const Projection& projection) {
  return fmt::format("T={} {}x{} {}", tokens, projection.outputs, projection.inputs,
                     projection.name);
}

Work WorkOf(const AnyMatrix& x, const AnyMatrix& weight, const AnyMatrix& y) {
  const auto bytes = [](const AnyMatrix& matrix) {
    return static_cast<double>(matrix.rows * matrix.cols * SizeOf(matrix.type));
  };
  return {.bytes = bytes(x) + bytes(weight) + bytes(y),
          .flops = 2.0 * static_cast<double>(x.rows) * static_cast<double>(weight.rows) *
                   static_cast<double>(weight.cols)};
}

void BenchScaled(const DeviceBench& bench, std::int64_t tokens, const Projection& projection) {
  const ScaledProduct product =
      MakeScaledProduct(bench, tokens, projection.outputs, projection.inputs);
  bench.Row("block_scaled_linear", Describe(tokens, projection),
            WorkOf(product.x.view, product.weight.view, product.y.view),
            [&] { bench.backend().BlockScaledLinear(product.params); });
}

void BenchBf16(const DeviceBench& bench, std::int64_t tokens, const Projection& projection) {
  const DeviceOperand x = bench.Random(DataType::kBf16, tokens, projection.inputs);
  const DeviceOperand weight = bench.Random(DataType::kBf16, projection.outputs, projection.inputs);
  const DeviceOperand y = bench.Random(DataType::kF32, tokens, projection.outputs);
  const LinearParams params{.x = x.view, .weight = weight.view, .y = y.view};
  bench.Row("linear_bf16", Describe(tokens, projection), WorkOf(x.view, weight.view, y.view),
            [&] { bench.backend().Linear(params); });
}

// Over weights of more than 1 GiB in all, so that none is in the L2 cache.
void BenchScaledChain(const DeviceBench& bench, std::int64_t tokens, const Projection& projection) {
  constexpr std::int64_t kBytes = std::int64_t{1} << 30;
  const std::int64_t weight_bytes = projection.outputs * projection.inputs;
  const int count = static_cast<int>(std::max<std::int64_t>(16, kBytes / weight_bytes + 1));
  ScaledProduct product = MakeScaledProduct(bench, tokens, projection.outputs, projection.inputs);
  const DeviceOperand weights =
      bench.Random(DataType::kFp8E4m3, projection.outputs * count, projection.inputs);
  bench.ChainRow("block_scaled_linear", Describe(tokens, projection),
                 {.bytes = static_cast<double>(weight_bytes), .flops = 0.0}, count, [&](int i) {
                   product.params.weight.data =
                       weights.buffer.As<const Fp8E4m3>() + i * weight_bytes;
                   bench.backend().BlockScaledLinear(product.params);
                 });
}

}  // namespace

ScaledProduct MakeScaledProduct(const DeviceBench& bench, std::int64_t tokens, std::int64_t outputs,
                                std::int64_t inputs) {
  const std::int64_t blocks = Fp8Blocks(inputs);
  ScaledProduct product{.x = bench.Random(DataType::kFp8E4m3, tokens, inputs),
                        .x_scales = bench.RandomScales(tokens, blocks),
                        .weight = bench.Random(DataType::kFp8E4m3, outputs, inputs),
                        .weight_scales = bench.RandomScales(Fp8Blocks(outputs), blocks),
                        .y = bench.Random(DataType::kBf16, tokens, outputs),
                        .params = {}};
  product.params = {.x = product.x.As<const Fp8E4m3>(),
                    .x_scales = product.x_scales.As<const float>(),
                    .weight = product.weight.As<const Fp8E4m3>(),
                    .weight_scales = product.weight_scales.As<const float>(),
                    .y = product.y.view};
  return product;
}

void BenchLinearChains(DeviceBench& bench) {
  for (const std::int64_t tokens : {1, 16, 32, 64}) {
    for (const Projection& projection : {Projection{24576, 1536, "q_b"},
                                         {32768, 1536, "q_b and wq_b"},
                                         {7168, 16384, "o"},
                                         {4096, 7168, "gate and up"},
                                         {2240, 7168, "q_a, wk and kv_a"},
                                         {1536, 7168, "q_a"},
                                         {8192, 1536, "indexer wq_b"},
                                         {7168, 2048, "expert down"}}) {
      BenchScaledChain(bench, tokens, projection);
    }
  }
}

void BenchLinearOps(DeviceBench& bench) {
  for (const std::int64_t tokens : {1, 16, 64, 128, 256, 4096}) {
    for (const Projection& projection : {Projection{1536, 7168, "q_a"},
                                         {576, 7168, "kv_a"},
                                         {24576, 1536, "q_b"},
                                         {8192, 1536, "indexer wq_b"},
                                         {7168, 16384, "o"},
                                         {18432, 7168, "dense gate"},
                                         {7168, 18432, "dense down"},
                                         {2048, 7168, "expert gate"},
                                         {7168, 2048, "expert down"}}) {
      BenchScaled(bench, tokens, projection);
    }
  }
  for (const std::int64_t tokens : {1, 64, 256}) {
    BenchBf16(bench, tokens, {256, 7168, "router"});
    BenchBf16(bench, tokens, {129280, 7168, "head"});
  }
}

}  // namespace dsa::bench
