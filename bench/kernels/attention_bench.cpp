// The steps of latent attention at the small model's sizes, a decode step and a chunk of prefill,
// and at DeepSeek-V3.2's.
#include "bench/kernels/paged_batch.h"
#include "common/view_parts.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/key_selection.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/masked_attention.h"

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kNope = 128;
constexpr std::int64_t kValue = 128;

struct Case {
  std::int64_t heads;
  std::int64_t selected;
  std::int64_t rows;
};

ConstAnyTensor3 Weight(const DeviceMatrix& matrix, std::int64_t rows) {
  return {.data = matrix.view.data,
          .type = matrix.view.type,
          .rows = matrix.view.rows / rows,
          .heads = rows,
          .cols = kLatentValues,
          .row_stride = rows * kLatentValues,
          .head_stride = kLatentValues};
}

void BenchCase(Backend& backend, const Report& report, const Case& bench_case) {
  const std::int64_t heads = bench_case.heads;
  const std::int64_t selected = bench_case.selected;
  const std::int64_t rows = bench_case.rows;
  constexpr std::int64_t kContext = 4096;
  constexpr DataType kType = DataType::kBf16;
  PagedBatch batch(backend, KvFormat::kFp8, kContext, rows);
  const KeySelection selection = batch.Select(selected);
  const DeviceMatrix q = RandomMatrix(backend, kType, rows, heads * (kNope + kLatentRopeValues));
  const DeviceMatrix w_uk = RandomMatrix(backend, kType, heads * kNope, kLatentValues);
  const DeviceMatrix w_uv = RandomMatrix(backend, kType, heads * kValue, kLatentValues);
  const DeviceMatrix q_latent = RandomMatrix(backend, kType, rows, heads * kLatentValues);
  const DeviceMatrix o_latent = RandomMatrix(backend, kType, rows, heads * kLatentValues);
  const DeviceMatrix o = RandomMatrix(backend, kType, rows, heads * kValue);
  const AnyTensor3 queries = HeadsOf(q.view, heads);
  const std::string shape =
      fmt::format("fp8 T={} H={} K={} context={}", rows, heads, selected, kContext);
  const double queries_run = static_cast<double>(rows * heads);
  const double projection = 2.0 * queries_run * static_cast<double>(kNope * kLatentValues);
  const double weight_bytes = static_cast<double>(heads * kNope * kLatentValues * 2);

  report.Row("absorb_query", shape, Measure([&] {
               backend.AbsorbQuery({.q_nope = ColumnsOf(queries, 0, kNope),
                                    .w_uk = Weight(w_uk, kNope),
                                    .q_latent = HeadsOf(q_latent.view, heads)});
             }),
             {.bytes = weight_bytes, .flops = projection});
  report.Row("latent_attention", shape, Measure([&] {
               backend.LatentAttention({.q_latent = HeadsOf(q_latent.view, heads),
                                        .q_rope = ColumnsOf(queries, kNope, kLatentRopeValues),
                                        .cache = batch.Latents(),
                                        .rows = batch.View(),
                                        .selection = selection,
                                        .softmax_scale = 0.02F,
                                        .o_latent = HeadsOf(o_latent.view, heads)});
             }),
             {.bytes = static_cast<double>(rows * selected * LatentBlock::kTokenBytes),
              .flops = 2.0 * queries_run * static_cast<double>(selected * (576 + 512))});
  report.Row("expand_value", shape, Measure([&] {
               backend.ExpandValue({.o_latent = HeadsOf(o_latent.view, heads),
                                    .w_uv = Weight(w_uv, kValue),
                                    .o = HeadsOf(o.view, heads)});
             }),
             {.bytes = weight_bytes, .flops = projection});
  if (rows > 1 && heads == 8) {  // minutes at 128 heads
    report.Row(
        "masked_attention", shape, Measure([&] {
          backend.MaskedAttention({.q = queries,
                                   .w_uk = Weight(w_uk, kNope),
                                   .w_uv = Weight(w_uv, kValue),
                                   .cache = batch.Latents(),
                                   .rows = batch.View(),
                                   .selection = selection,
                                   .softmax_scale = 0.02F,
                                   .o = HeadsOf(o.view, heads)});
        }),
        {.bytes = static_cast<double>(kContext * LatentBlock::kTokenBytes * heads),
         .flops = 2.0 * static_cast<double>(heads * kContext * (kNope + kValue)) * 512.0 +
                  2.0 * queries_run * static_cast<double>(selected * (kNope + 64 + kValue))});
  }
}

}  // namespace

void BenchAttention(Backend& backend, const Report& report) {
  report.Heading("attention");
  BenchCase(backend, report, {.heads = 8, .selected = 256, .rows = 1});
  BenchCase(backend, report, {.heads = 8, .selected = 256, .rows = 256});
  BenchCase(backend, report, {.heads = 128, .selected = 2048, .rows = 1});
  BenchCase(backend, report, {.heads = 128, .selected = 2048, .rows = 8});
}

}  // namespace dsa::bench
