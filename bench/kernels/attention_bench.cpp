// The steps of latent attention at the small model's sizes: a decode step and a chunk of prefill.
#include "bench/kernels/paged_batch.h"

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kHeads = 8;
constexpr std::int64_t kNope = 128;
constexpr std::int64_t kValue = 128;
constexpr std::int64_t kSelected = 256;

ConstAnyTensor3 Weight(const DeviceMatrix& matrix, std::int64_t rows) {
  return {.data = matrix.view.data,
          .type = matrix.view.type,
          .rows = kHeads,
          .heads = rows,
          .cols = kLatentValues,
          .row_stride = rows * kLatentValues,
          .head_stride = kLatentValues};
}

ConstAnyTensor3 Columns(const AnyTensor3& tensor, std::int64_t first, std::int64_t cols) {
  ConstAnyTensor3 view = tensor;
  view.data = static_cast<const std::uint8_t*>(tensor.data) + first * SizeOf(tensor.type);
  view.cols = cols;
  return view;
}

void BenchCase(Backend& backend, const Report& report, std::int64_t rows) {
  constexpr std::int64_t kContext = 4096;
  constexpr DataType kType = DataType::kBf16;
  PagedBatch batch(backend, KvFormat::kFp8, kContext, rows);
  const KeySelection selection = batch.Select(kSelected);
  const DeviceMatrix q = RandomMatrix(backend, kType, rows, kHeads * (kNope + kLatentRopeValues));
  const DeviceMatrix w_uk = RandomMatrix(backend, kType, kHeads * kNope, kLatentValues);
  const DeviceMatrix w_uv = RandomMatrix(backend, kType, kHeads * kValue, kLatentValues);
  const DeviceMatrix q_latent = RandomMatrix(backend, kType, rows, kHeads * kLatentValues);
  const DeviceMatrix o_latent = RandomMatrix(backend, kType, rows, kHeads * kLatentValues);
  const DeviceMatrix o = RandomMatrix(backend, kType, rows, kHeads * kValue);
  const AnyTensor3 queries = Heads(q, kHeads);
  const std::string shape =
      fmt::format("fp8 T={} H={} K={} context={}", rows, kHeads, kSelected, kContext);
  const double heads = static_cast<double>(rows * kHeads);
  const double projection = 2.0 * heads * static_cast<double>(kNope * kLatentValues);
  const double weight_bytes = static_cast<double>(kHeads * kNope * kLatentValues * 2);

  report.Row("absorb_query", shape, Measure([&] {
               backend.AbsorbQuery({.q_nope = Columns(queries, 0, kNope),
                                    .w_uk = Weight(w_uk, kNope),
                                    .q_latent = Heads(q_latent, kHeads)});
             }),
             {.bytes = weight_bytes, .flops = projection});
  report.Row("latent_attention", shape, Measure([&] {
               backend.LatentAttention({.q_latent = Heads(q_latent, kHeads),
                                        .q_rope = Columns(queries, kNope, kLatentRopeValues),
                                        .cache = batch.Latents(),
                                        .rows = batch.View(),
                                        .selection = selection,
                                        .softmax_scale = 0.02F,
                                        .o_latent = Heads(o_latent, kHeads)});
             }),
             {.bytes = static_cast<double>(rows * kSelected * LatentBlock::kTokenBytes),
              .flops = 2.0 * heads * static_cast<double>(kSelected * (576 + 512))});
  report.Row("expand_value", shape, Measure([&] {
               backend.ExpandValue({.o_latent = Heads(o_latent, kHeads),
                                    .w_uv = Weight(w_uv, kValue),
                                    .o = Heads(o, kHeads)});
             }),
             {.bytes = weight_bytes, .flops = projection});
  if (rows > 1) {
    report.Row("masked_attention", shape, Measure([&] {
                 backend.MaskedAttention({.q = queries,
                                          .w_uk = Weight(w_uk, kNope),
                                          .w_uv = Weight(w_uv, kValue),
                                          .cache = batch.Latents(),
                                          .rows = batch.View(),
                                          .selection = selection,
                                          .softmax_scale = 0.02F,
                                          .o = Heads(o, kHeads)});
               }),
               {.bytes = static_cast<double>(kContext * LatentBlock::kTokenBytes * kHeads),
                .flops = 2.0 * static_cast<double>(kHeads * kContext * (kNope + kValue)) * 512.0 +
                         2.0 * heads * static_cast<double>(kSelected * (kNope + 64 + kValue))});
  }
}

}  // namespace

void BenchAttention(Backend& backend, const Report& report) {
  report.Heading("attention");
  BenchCase(backend, report, 1);
  BenchCase(backend, report, 256);
}

}  // namespace dsa::bench
