// IndexerLogits and SelectTopK in a decode step: every row the last of its own sequence.  The
// selection works on the scores that the logits left behind.
#include "bench/cuda/device_bench.h"
#include "common/view.h"
#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/select_top_k.h"

#include <numeric>
#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kHeads = 64;
constexpr std::int64_t kSelected = 2048;

struct DecodeRows {
  DeviceBuffer positions, sequences, block_tables;
  PagedRows view;
};

// `rows` sequences of `context` tokens, their blocks mixed with one another's.
DecodeRows MakeRows(const DeviceBench& bench, std::int64_t rows, std::int64_t context) {
  const std::int64_t blocks = context / kTokensPerBlock;
  const std::vector<std::int32_t> positions(static_cast<std::size_t>(rows),
                                            static_cast<std::int32_t>(context - 1));
  std::vector<std::int32_t> sequences(positions.size());
  std::iota(sequences.begin(), sequences.end(), 0);
  std::vector<std::int32_t> tables(static_cast<std::size_t>(rows * blocks));
  for (std::size_t i = 0; i < tables.size(); ++i) {
    tables[i] = static_cast<std::int32_t>(i * 7919 % tables.size());  // 7919 is prime: each once
  }
  DecodeRows made{.positions = bench.Upload(positions.data(), 4 * rows),
                  .sequences = bench.Upload(sequences.data(), 4 * rows),
                  .block_tables = bench.Upload(tables.data(), 4 * rows * blocks),
                  .view = {}};
  made.view = {.positions = {.data = made.positions.As<const std::int32_t>(), .size = rows},
               .sequences = {.data = made.sequences.As<const std::int32_t>(), .size = rows},
               .block_tables = {.data = made.block_tables.As<const std::int32_t>(),
                                .rows = rows,
                                .cols = blocks,
                                .row_stride = blocks}};
  return made;
}

void BenchDecode(const DeviceBench& bench, std::int64_t rows, std::int64_t context) {
  const DecodeRows decode = MakeRows(bench, rows, context);
  const std::int64_t blocks = rows * context / kTokensPerBlock;
  const DeviceBuffer keys = bench.RandomIndexerKeys(blocks);
  const DeviceOperand queries = bench.Random(DataType::kFp8E4m3, rows, kHeads * kIndexerValues);
  const DeviceOperand weights = bench.Random(DataType::kF32, rows, kHeads);
  const DeviceOperand scores = bench.Random(DataType::kF32, rows, context);
  const DeviceOperand selected = bench.Random(DataType::kF32, rows, kSelected);
  const DeviceOperand counts = bench.Random(DataType::kF32, 2, rows);  // and the faults
  const IndexerLogitsParams logits{
      .queries = HeadsOf(queries.view, kHeads),
      .weights = weights.As<const float>(),
      .cache = {.data = keys.As<std::uint8_t>(), .blocks = blocks, .format = KvFormat::kFp8},
      .rows = decode.view,
      .scores = scores.As<float>()};
  const SelectTopKParams top_k{
      .scores = scores.As<const float>(),
      .rows = decode.view,
      .k = kSelected,
      .slots = selected.As<std::int32_t>(),
      .mask = {},
      .positions = {},
      .counts = {.data = counts.buffer.As<std::int32_t>(), .size = rows},
      .faults = {.data = counts.buffer.As<std::int32_t>() + rows, .size = rows}};

  const std::string shape = fmt::format("T={} context={}K", rows, context / 1024);
  const auto pairs = static_cast<double>(rows * context);
  const double row_bytes = static_cast<double>(rows * kHeads) * (kIndexerValues + 4.0);
  bench.Row("indexer_logits", shape,
            {.bytes = pairs * (IndexerTokenBytes(KvFormat::kFp8) + 4.0) + row_bytes,
             .flops = pairs * kHeads * kIndexerValues * 2.0},
            [&] { bench.backend().IndexerLogits(logits); });
  bench.Row("select_top_k", shape,
            {.bytes = 4.0 * pairs + 4.0 * static_cast<double>(rows * kSelected), .flops = 0.0},
            [&] { bench.backend().SelectTopK(top_k); });
}

}  // namespace

void BenchIndexerOps(DeviceBench& bench) {
  for (const std::int64_t rows : {1, 64, 256}) {
    for (const std::int64_t context : {4096, 32768, 131072}) {
      BenchDecode(bench, rows, context);
    }
  }
}

}  // namespace dsa::bench
