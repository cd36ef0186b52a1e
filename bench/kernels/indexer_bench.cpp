// The indexer at the small model's sizes and at DeepSeek-V3.2's: a decode step and a chunk of
// prefill.
#include "bench/kernels/paged_batch.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/rope.h"

#include <fmt/core.h>

namespace dsa::bench {
namespace {

struct Case {
  KvFormat format;
  const char* name;
  std::int64_t heads;
  std::int64_t context;
  std::int64_t rows;
};

void BenchCase(Backend& backend, const Report& report, const Case& bench_case) {
  const KvFormat format = bench_case.format;
  const std::int64_t context = bench_case.context;
  const std::int64_t rows = bench_case.rows;
  const std::int64_t heads = bench_case.heads;
  const PagedBatch batch(backend, format, context, rows);
  const DataType stored = format == KvFormat::kFp8 ? DataType::kFp8E4m3 : DataType::kF32;
  const DeviceMatrix q = RandomMatrix(backend, DataType::kF32, rows, heads * kIndexerValues);
  const DeviceMatrix queries = RandomMatrix(backend, stored, rows, heads * kIndexerValues);
  const DeviceMatrix head_weights = RandomMatrix(backend, DataType::kF32, rows, heads);
  const DeviceMatrix weights = RandomMatrix(backend, DataType::kF32, rows, heads);
  const DeviceMatrix scores = RandomMatrix(backend, DataType::kF32, rows, context);
  const auto floats = [](const DeviceMatrix& matrix) {
    return Matrix<float>{.data = matrix.buffer.As<float>(),
                         .rows = matrix.view.rows,
                         .cols = matrix.view.cols,
                         .row_stride = matrix.view.row_stride};
  };
  const Matrix<float> weight_view = floats(weights);
  const std::string shape =
      fmt::format("{} T={} H={} context={}", bench_case.name, rows, heads, context);
  const Timing prepare = Measure([&] {
    backend.PrepareIndexerQuery({.q = HeadsOf(q.view, heads),
                                 .positions = batch.Positions(),
                                 .table = batch.Table(),
                                 .layout = RopeLayout::kHalfSplit,
                                 .format = format,
                                 .head_weights = head_weights.view,
                                 .queries = HeadsOf(queries.view, heads),
                                 .weights = weight_view});
  });
  const double values = static_cast<double>(rows * heads * kIndexerValues);
  report.Row("prepare_indexer_query", shape, prepare,
             {.bytes = values * static_cast<double>(4 + SizeOf(stored)), .flops = values * 10.0});
  const Timing logits = Measure([&] {
    backend.IndexerLogits(
        {.queries = HeadsOf(queries.view, heads),
         .weights = {.data = weight_view.data, .rows = rows, .cols = heads, .row_stride = heads},
         .cache = batch.IndexerKeys(),
         .rows = batch.View(),
         .scores = floats(scores)});
  });
  const double keys = batch.KeysSeen(context);
  report.Row("indexer_logits", shape, logits,
             {.bytes = static_cast<double>(context * IndexerTokenBytes(format)) + keys * 4.0,
              .flops = keys * static_cast<double>(heads) * (2.0 * kIndexerValues + 2.0)});
}

}  // namespace

void BenchIndexer(Backend& backend, const Report& report) {
  report.Heading("indexer");
  for (const std::int64_t rows : {1, 256}) {
    BenchCase(
        backend, report,
        {.format = KvFormat::kFp8, .name = "fp8", .heads = 16, .context = 4096, .rows = rows});
    BenchCase(
        backend, report,
        {.format = KvFormat::kF32, .name = "f32", .heads = 16, .context = 4096, .rows = rows});
  }
  for (const std::int64_t rows : {1, 16}) {
    BenchCase(
        backend, report,
        {.format = KvFormat::kFp8, .name = "fp8", .heads = 64, .context = 32768, .rows = rows});
  }
}

}  // namespace dsa::bench
