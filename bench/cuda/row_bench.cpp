// The ops that work row by row, for decode and for a chunk of prefill: embedding, RMSNorm with the
// residual, quantization, RoPE, both cache writers and the indexer's queries.
#include "bench/cuda/device_bench.h"
#include "common/view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/embed.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"
#include "kernels/ops/store_indexer_key.h"
#include "kernels/ops/store_latent.h"

#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kHidden = 7168;
constexpr std::int64_t kVocabulary = 129280;
constexpr std::int64_t kPositions = 131072;

// What the ops that rotate by position share: T rows far apart in a long table, and slots for them.
struct PositionedRows {
  DeviceOperand cos, sin;
  DeviceBuffer positions, slots;
  std::int64_t rows;

  RopeTable Table() const { return {.cos = cos.As<const float>(), .sin = sin.As<const float>()}; }
  Vector<const std::int32_t> Positions() const {
    return {.data = positions.As<const std::int32_t>(), .size = rows};
  }
  Vector<const std::int64_t> Slots() const {
    return {.data = slots.As<const std::int64_t>(), .size = rows};
  }
};

PositionedRows MakeRows(const DeviceBench& bench, std::int64_t rows) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(rows));
  std::vector<std::int64_t> slots(positions.size());
  for (std::size_t t = 0; t < positions.size(); ++t) {
    positions[t] = static_cast<std::int32_t>(t * 7919 % kPositions);
    slots[t] = static_cast<std::int64_t>(positions.size() - 1 - t);
  }
  return {.cos = bench.Random(DataType::kF32, kPositions, kLatentRopeValues / 2),
          .sin = bench.Random(DataType::kF32, kPositions, kLatentRopeValues / 2),
          .positions = bench.Upload(positions.data(), 4 * rows),
          .slots = bench.Upload(slots.data(), 8 * rows),
          .rows = rows};
}

constexpr double kTableBytes = kLatentRopeValues * 4.0;  // a row's cosines and sines

std::int64_t Blocks(std::int64_t tokens) {
  return (tokens + kTokensPerBlock - 1) / kTokensPerBlock;
}

void BenchEmbed(const DeviceBench& bench, std::int64_t tokens, const DeviceOperand& table) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  for (std::size_t t = 0; t < ids.size(); ++t) {
    ids[t] = static_cast<std::int32_t>(t * 7919 % kVocabulary);
  }
  const DeviceBuffer device_ids = bench.Upload(ids.data(), 4 * tokens);
  const DeviceOperand x = bench.Random(DataType::kBf16, tokens, kHidden);
  const EmbedParams params{.ids = {.data = device_ids.As<const std::int32_t>(), .size = tokens},
                           .table = table.view,
                           .x = x.view};
  bench.Row("embed", fmt::format("T={} D={}", tokens, kHidden),
            {.bytes = 4.0 * static_cast<double>(tokens * kHidden), .flops = 0.0},
            [&] { bench.backend().Embed(params); });
}

void BenchRmsNorm(const DeviceBench& bench, std::int64_t tokens) {
  const DeviceOperand x = bench.Random(DataType::kBf16, tokens, kHidden);
  const DeviceOperand residual = bench.Random(DataType::kBf16, tokens, kHidden);
  const DeviceOperand weight = bench.Random(DataType::kF32, 1, kHidden);
  const DeviceOperand y = bench.Random(DataType::kBf16, tokens, kHidden);
  // The residual grows from call to call, slowly: by x, which stays.
  const RmsNormParams params{.x = x.view,
                             .residual = residual.view,
                             .weight = {.data = weight.buffer.As<const float>(), .size = kHidden},
                             .y = y.view,
                             .eps = 1e-6F};
  bench.Row("rms_norm + residual", fmt::format("T={} D={}", tokens, kHidden),
            {.bytes = static_cast<double>(8 * tokens * kHidden + 4 * kHidden), .flops = 0.0},
            [&] { bench.backend().RmsNorm(params); });
}

void BenchQuantize(const DeviceBench& bench, std::int64_t tokens, std::int64_t cols) {
  const DeviceOperand x = bench.Random(DataType::kBf16, tokens, cols);
  const DeviceOperand values = bench.Random(DataType::kFp8E4m3, tokens, cols);
  const DeviceOperand scales = bench.RandomScales(tokens, Fp8Blocks(cols));
  const QuantizeFp8Params params{.x = x.view,
                                 .values = values.As<Fp8E4m3>(),
                                 .scales = scales.As<float>(),
                                 .scale_format = ScaleFormat::kPowerOfTwo};
  bench.Row("quantize_fp8", fmt::format("T={} K={}", tokens, cols),
            {.bytes = static_cast<double>(tokens * (3 * cols + 4 * Fp8Blocks(cols))), .flops = 0.0},
            [&] { bench.backend().QuantizeFp8(params); });
}

// The last 64 columns of each of q's 128 heads of 192.
void BenchRope(const DeviceBench& bench, const PositionedRows& rows) {
  constexpr std::int64_t kHeads = 128;
  constexpr std::int64_t kNope = 128;
  const DeviceOperand q =
      bench.Random(DataType::kBf16, rows.rows, kHeads * (kNope + kLatentRopeValues));
  AnyTensor3 heads = HeadsOf(q.view, kHeads);
  heads.data = q.buffer.As<Bf16>() + kNope;
  heads.cols = kLatentRopeValues;
  const RopeParams params{.x = heads,
                          .positions = rows.Positions(),
                          .table = rows.Table(),
                          .layout = RopeLayout::kInterleaved};
  bench.Row(
      "rope", fmt::format("T={} H={} R={}", rows.rows, kHeads, kLatentRopeValues),
      {.bytes = static_cast<double>(rows.rows) * (4.0 * kHeads * kLatentRopeValues + kTableBytes),
       .flops = 0.0},
      [&] { bench.backend().Rope(params); });
}

void BenchStoreLatent(const DeviceBench& bench, const PositionedRows& rows) {
  const std::int64_t blocks = Blocks(rows.rows);
  const DeviceOperand kv =
      bench.Random(DataType::kBf16, rows.rows, kLatentValues + kLatentRopeValues);
  const DeviceOperand weight = bench.Random(DataType::kF32, 1, kLatentValues);
  const DeviceBuffer cache = bench.Allocate(blocks * LatentBlock::kBytes);
  const StoreLatentParams params{
      .kv = kv.view,
      .norm_weight = {.data = weight.buffer.As<const float>(), .size = kLatentValues},
      .eps = 1e-6F,
      .positions = rows.Positions(),
      .table = rows.Table(),
      .layout = RopeLayout::kInterleaved,
      .slots = rows.Slots(),
      .cache = {.data = cache.As<std::uint8_t>(), .blocks = blocks, .format = KvFormat::kFp8}};
  bench.Row("store_latent", fmt::format("T={} fp8", rows.rows),
            {.bytes = static_cast<double>(rows.rows) * (2.0 * (kLatentValues + kLatentRopeValues) +
                                                        LatentBlock::kTokenBytes + kTableBytes),
             .flops = 0.0},
            [&] { bench.backend().StoreLatent(params); });
}

void BenchStoreIndexerKey(const DeviceBench& bench, const PositionedRows& rows) {
  const std::int64_t blocks = Blocks(rows.rows);
  const DeviceOperand k = bench.Random(DataType::kBf16, rows.rows, kIndexerValues);
  const DeviceOperand weight = bench.Random(DataType::kF32, 1, kIndexerValues);
  const DeviceOperand bias = bench.Random(DataType::kF32, 1, kIndexerValues);
  const DeviceBuffer cache = bench.Allocate(blocks * IndexerBlock::kBytes);
  const StoreIndexerKeyParams params{
      .k = k.view,
      .norm_weight = {.data = weight.buffer.As<const float>(), .size = kIndexerValues},
      .norm_bias = {.data = bias.buffer.As<const float>(), .size = kIndexerValues},
      .eps = 1e-6F,
      .positions = rows.Positions(),
      .table = rows.Table(),
      .layout = RopeLayout::kHalfSplit,
      .slots = rows.Slots(),
      .cache = {.data = cache.As<std::uint8_t>(), .blocks = blocks, .format = KvFormat::kFp8}};
  bench.Row("store_indexer_key", fmt::format("T={} fp8", rows.rows),
            {.bytes = static_cast<double>(rows.rows) *
                      (2.0 * kIndexerValues + kIndexerValues + 4.0 + kTableBytes),
             .flops = 0.0},
            [&] { bench.backend().StoreIndexerKey(params); });
}

void BenchPrepareQuery(const DeviceBench& bench, const PositionedRows& rows) {
  constexpr std::int64_t kHeads = 64;
  const DeviceOperand q = bench.Random(DataType::kBf16, rows.rows, kHeads * kIndexerValues);
  const DeviceOperand head_weights = bench.Random(DataType::kF32, rows.rows, kHeads);
  const DeviceOperand queries =
      bench.Random(DataType::kFp8E4m3, rows.rows, kHeads * kIndexerValues);
  const DeviceOperand weights = bench.Random(DataType::kF32, rows.rows, kHeads);
  const PrepareIndexerQueryParams params{.q = HeadsOf(q.view, kHeads),
                                         .positions = rows.Positions(),
                                         .table = rows.Table(),
                                         .layout = RopeLayout::kHalfSplit,
                                         .format = KvFormat::kFp8,
                                         .head_weights = head_weights.view,
                                         .queries = HeadsOf(queries.view, kHeads),
                                         .weights = weights.As<float>()};
  bench.Row("prepare_indexer_query", fmt::format("T={} H={} fp8", rows.rows, kHeads),
            {.bytes = static_cast<double>(rows.rows) *
                      (kHeads * (3.0 * kIndexerValues + 8.0) + kTableBytes),
             .flops = 0.0},
            [&] { bench.backend().PrepareIndexerQuery(params); });
}

}  // namespace

void BenchRowOps(DeviceBench& bench) {
  const DeviceOperand table = bench.Random(DataType::kBf16, kVocabulary, kHidden);
  for (const std::int64_t tokens : {1, 64, 256, 4096}) {
    const PositionedRows rows = MakeRows(bench, tokens);
    BenchEmbed(bench, tokens, table);
    BenchRmsNorm(bench, tokens);
    BenchQuantize(bench, tokens, kHidden);
    BenchQuantize(bench, tokens, 16384);
    BenchRope(bench, rows);
    BenchStoreLatent(bench, rows);
    BenchStoreIndexerKey(bench, rows);
    BenchPrepareQuery(bench, rows);
  }
}

}  // namespace dsa::bench
