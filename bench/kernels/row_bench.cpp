// RmsNorm, QuantizeFp8, SwiGlu and Sample.
#include "bench/kernels/kernel_bench.h"
#include "common/view.h"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/swiglu.h"

#include <fmt/core.h>

namespace dsa::bench {
namespace {

void BenchRmsNorm(Backend& backend, const Report& report, std::int64_t tokens,
                  std::int64_t hidden) {
  const auto x = RandomMatrix(backend, DataType::kBf16, tokens, hidden);
  const auto residual = RandomMatrix(backend, DataType::kBf16, tokens, hidden);
  const auto y = RandomMatrix(backend, DataType::kBf16, tokens, hidden);
  const auto weight = RandomScales(backend, hidden, ScaleFormat::kPlain);
  const RmsNormParams params{.x = x.view,
                             .residual = residual.view,
                             .weight = {.data = weight.As<const float>(), .size = hidden},
                             .y = y.view,
                             .eps = 1e-6F};
  const auto values = static_cast<double>(tokens * hidden);
  report.Row("rms_norm", fmt::format("T={} D={}", tokens, hidden),
             Measure([&] { backend.RmsNorm(params); }),
             {.bytes = 8.0 * values, .flops = 5.0 * values});
}

void BenchQuantize(Backend& backend, const Report& report, std::int64_t tokens, std::int64_t cols) {
  const auto x = RandomMatrix(backend, DataType::kBf16, tokens, cols);
  const auto values = RandomMatrix(backend, DataType::kFp8E4m3, tokens, cols);
  const std::int64_t blocks = Fp8Blocks(cols);
  const auto scales = RandomScales(backend, tokens * blocks, ScaleFormat::kPlain);
  const QuantizeFp8Params params{
      .x = x.view,
      .values = {.data = values.buffer.As<Fp8E4m3>(),
                 .rows = tokens,
                 .cols = cols,
                 .row_stride = cols},
      .scales = {.data = scales.As<float>(), .rows = tokens, .cols = blocks, .row_stride = blocks},
      .scale_format = ScaleFormat::kPowerOfTwo};
  const auto count = static_cast<double>(tokens * cols);
  report.Row("quantize_fp8", fmt::format("T={} K={}", tokens, cols),
             Measure([&] { backend.QuantizeFp8(params); }),
             {.bytes = 3.0 * count, .flops = 3.0 * count});
}

void BenchSwiGlu(Backend& backend, const Report& report, std::int64_t tokens, std::int64_t width) {
  const auto gate = RandomMatrix(backend, DataType::kBf16, tokens, width);
  const auto up = RandomMatrix(backend, DataType::kBf16, tokens, width);
  const auto y = RandomMatrix(backend, DataType::kBf16, tokens, width);
  const SwiGluParams params{.gate = gate.view, .up = up.view, .y = y.view};
  const auto values = static_cast<double>(tokens * width);
  report.Row("swiglu", fmt::format("T={} I={}", tokens, width),
             Measure([&] { backend.SwiGlu(params); }),
             {.bytes = 6.0 * values, .flops = 10.0 * values});
}

void BenchSample(Backend& backend, const Report& report, std::int64_t vocabulary,
                 const SamplingRow& wanted) {
  const auto logits = RandomMatrix(backend, DataType::kF32, 1, vocabulary);
  const auto ints = [&](std::int64_t count) {
    auto buffer = backend.Allocate(static_cast<std::size_t>(count) * sizeof(std::int32_t));
    DSA_CHECK(buffer.ok(), "BenchSample: no memory for {}", count);
    backend.Zero(buffer.value().data(), buffer.value().bytes());
    return std::move(buffer).value();
  };
  const auto logit_rows = ints(1);
  const auto tokens = ints(1);
  const auto faults = ints(1);
  const auto logprobs = ints(1);
  const auto top_ids = ints(kTopLogprobsMax);
  const auto top_logprobs = ints(kTopLogprobsMax);
  const SampleParams params{.logits = {.data = logits.buffer.As<const float>(),
                                       .rows = 1,
                                       .cols = vocabulary,
                                       .row_stride = vocabulary},
                            .logit_rows = {.data = logit_rows.As<const std::int32_t>(), .size = 1},
                            .rows = {.data = &wanted, .size = 1},
                            .adjustments = {},
                            .masks = {},
                            .vocabulary_limit = static_cast<std::int32_t>(vocabulary),
                            .tokens = {.data = tokens.As<std::int32_t>(), .size = 1},
                            .logprobs = {.data = logprobs.As<float>(), .size = 1},
                            .top_ids = {.data = top_ids.As<std::int32_t>(),
                                        .rows = 1,
                                        .cols = kTopLogprobsMax,
                                        .row_stride = kTopLogprobsMax},
                            .top_logprobs = {.data = top_logprobs.As<float>(),
                                             .rows = 1,
                                             .cols = kTopLogprobsMax,
                                             .row_stride = kTopLogprobsMax},
                            .faults = {.data = faults.As<std::int32_t>(), .size = 1}};
  const auto values = static_cast<double>(vocabulary);
  report.Row("sample",
             fmt::format("V={} t={} k={} p={}", vocabulary, wanted.temperature, wanted.top_k,
                         wanted.top_p),
             Measure([&] { backend.Sample(params); }),
             {.bytes = 4.0 * values, .flops = 4.0 * values});
}

}  // namespace

void BenchRows(Backend& backend, const Report& report) {
  report.Heading("rows");
  for (const std::int64_t tokens : {1, 512}) {
    BenchRmsNorm(backend, report, tokens, 384);
    BenchRmsNorm(backend, report, tokens, 7168);
    BenchQuantize(backend, report, tokens, 384);
    BenchQuantize(backend, report, tokens, 7168);
    BenchSwiGlu(backend, report, tokens, 2048);
  }
  SamplingRow wanted{.temperature = 0.0F,
                     .min_p = 0.0F,
                     .top_p = 1.0F,
                     .top_k = 0,
                     .seed = 1,
                     .position = 1,
                     .adjustments_first = 0,
                     .adjustments_count = 0,
                     .top_logprobs = 0};
  for (const std::int64_t vocabulary : {16384, 129280}) {
    wanted.temperature = 0.0F;
    BenchSample(backend, report, vocabulary, wanted);
    wanted.temperature = 1.0F;
    BenchSample(backend, report, vocabulary, wanted);
    wanted.top_p = 0.95F;
    BenchSample(backend, report, vocabulary, wanted);
    wanted.top_p = 1.0F;
  }
}

}  // namespace dsa::bench
