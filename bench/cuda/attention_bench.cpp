// AbsorbQuery, LatentAttention and ExpandValue in a decode step, and LatentAttention of a chunk of
// prefill, over an fp8 cache of normal latents.
#include "bench/cuda/device_bench.h"
#include "common/prng.h"
#include "common/view_parts.h"
#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/latent_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kNope = 128;
constexpr std::int64_t kSelected = 2048;

// Rows of sequences whose blocks lie mixed.  As many positions as are selected cut what a row sees
// into pieces of equal length, and one lies anywhere in each.  Of a chunk a row keeps all but one
// of kLifetime positions of the row before it, as neighbours in a text select mostly the same keys.
constexpr std::int64_t kLifetime = 32;
struct AttentionRows {
  DeviceBuffer positions, sequences, tables, selected, counts, mask;
  PagedRows view;
  KeySelection selection;
};

AttentionRows MakeRows(const DeviceBench& bench, const std::vector<std::int32_t>& positions,
                       const std::vector<std::int32_t>& sequences, std::int64_t sequence_count,
                       std::int64_t context, bool is_chunk = false) {
  const auto rows = static_cast<std::int64_t>(positions.size());
  const std::int64_t blocks = context / kTokensPerBlock;
  std::vector<std::int32_t> tables(static_cast<std::size_t>(sequence_count * blocks));
  for (std::size_t i = 0; i < tables.size(); ++i) {
    tables[i] = static_cast<std::int32_t>(i * 7919 % tables.size());
  }
  std::vector<std::int32_t> selected;
  std::vector<std::int32_t> counts;
  std::vector<std::uint64_t> mask(
      static_cast<std::size_t>(rows * blocks));  // a word for each block
  for (std::size_t row = 0; row < positions.size(); ++row) {
    const std::int64_t visible = positions[row] + std::int64_t{1};
    const std::int64_t count = std::min(visible, kSelected);
    const auto first_block = static_cast<std::size_t>(sequences[row] * blocks);
    for (std::int64_t i = 0; i < kSelected; ++i) {
      // The row that chose position i, and what it saw.
      const std::int64_t age =
          is_chunk ? (static_cast<std::int64_t>(row) + i) % kLifetime : std::int64_t{0};
      const std::int64_t chooser = static_cast<std::int64_t>(row) - age;
      const std::int64_t seen = is_chunk ? positions[0] + std::int64_t{1} : visible;
      const std::int64_t from = i * seen / count;
      const std::int64_t length = std::max<std::int64_t>((i + 1) * seen / count - from, 1);
      const std::int64_t key =
          std::min(seen - 1, from + static_cast<std::int64_t>(CounterBits(chooser, i) % length));
      const auto block = static_cast<std::size_t>(key / kTokensPerBlock);
      selected.push_back(i < count ? tables[first_block + block] * kTokensPerBlock +
                                         static_cast<std::int32_t>(key % kTokensPerBlock)
                                   : -1);
      if (i < count) {
        mask[row * static_cast<std::size_t>(blocks) + block] |= 1ULL << (key % kTokensPerBlock);
      }
    }
    counts.push_back(static_cast<std::int32_t>(count));
  }
  const auto bytes = [](const std::vector<std::int32_t>& values) {
    return static_cast<std::int64_t>(values.size()) * 4;
  };
  AttentionRows made{.positions = bench.Upload(positions.data(), bytes(positions)),
                     .sequences = bench.Upload(sequences.data(), bytes(sequences)),
                     .tables = bench.Upload(tables.data(), bytes(tables)),
                     .selected = bench.Upload(selected.data(), bytes(selected)),
                     .counts = bench.Upload(counts.data(), bytes(counts)),
                     .mask = bench.Upload(mask.data(), static_cast<std::int64_t>(mask.size()) * 8),
                     .view = {},
                     .selection = {}};
  made.view = {.positions = {.data = made.positions.As<const std::int32_t>(), .size = rows},
               .sequences = {.data = made.sequences.As<const std::int32_t>(), .size = rows},
               .block_tables = {.data = made.tables.As<const std::int32_t>(),
                                .rows = sequence_count,
                                .cols = blocks,
                                .row_stride = blocks}};
  made.selection.slots = {.data = made.selected.As<const std::int32_t>(),
                          .rows = rows,
                          .cols = kSelected,
                          .row_stride = kSelected};
  made.selection.mask = {.data = made.mask.As<const std::uint64_t>(),
                         .rows = rows,
                         .cols = blocks,
                         .row_stride = blocks};
  made.selection.counts = {.data = made.counts.As<const std::int32_t>(), .size = rows};
  return made;
}

void BenchProjections(const DeviceBench& bench, std::int64_t tokens, std::int64_t heads) {
  const DeviceOperand q = bench.Random(DataType::kBf16, tokens, heads * (kNope + 64));
  const DeviceOperand w = bench.Random(DataType::kBf16, heads * kNope, kLatentValues);
  const DeviceOperand latent = bench.Random(DataType::kBf16, tokens, heads * kLatentValues);
  const DeviceOperand o = bench.Random(DataType::kBf16, tokens, heads * kNope);
  const auto values = static_cast<double>(heads * kNope * kLatentValues);
  const Work work = {.bytes = 2.0 * values + 2.0 * static_cast<double>(tokens * heads) *
                                                 static_cast<double>(kNope + kLatentValues),
                     .flops = 2.0 * values * static_cast<double>(tokens)};
  const std::string shape = fmt::format("T={} H={}", tokens, heads);
  bench.Row("absorb_query", shape, work, [&] {
    bench.backend().AbsorbQuery({.q_nope = ColumnsOf(HeadsOf(q.view, heads), 0, kNope),
                                 .w_uk = HeadWeight(w, heads, kNope),
                                 .q_latent = HeadsOf(latent.view, heads)});
  });
  bench.Row("expand_value", shape, work, [&] {
    bench.backend().ExpandValue({.o_latent = HeadsOf(latent.view, heads),
                                 .w_uv = HeadWeight(w, heads, kNope),
                                 .o = HeadsOf(o.view, heads)});
  });
  const DeviceOperand codes = bench.Random(DataType::kFp8E4m3, heads * kNope, kLatentValues);
  const DeviceOperand scales = bench.Random(DataType::kF32, heads, kLatentValues / 128);
  bench.Row("expand_value fp8", shape, {.bytes = work.bytes - values, .flops = work.flops}, [&] {
    bench.backend().ExpandValue(
        {.o_latent = HeadsOf(latent.view, heads),
         .w_uv = HeadWeight(codes, heads, kNope),
         .o = HeadsOf(o.view, heads),
         .w_uv_scales = {.data = static_cast<const float*>(scales.view.data),
                         .rows = heads,
                         .cols = kLatentValues / 128,
                         .row_stride = kLatentValues / 128}});
  });
}

void BenchLatent(const DeviceBench& bench, const std::string& shape, const AttentionRows& rows,
                 std::int64_t heads, std::int64_t blocks) {
  const std::int64_t tokens = rows.view.positions.size;
  const DeviceBuffer cache = bench.RandomLatents(blocks);
  const DeviceOperand q = bench.Random(DataType::kBf16, tokens, heads * (kNope + 64));
  const DeviceOperand latent = bench.Random(DataType::kBf16, tokens, heads * kLatentValues);
  const DeviceOperand o = bench.Random(DataType::kBf16, tokens, heads * kLatentValues);
  const bool is_selected = rows.selection.slots.data != nullptr;
  const auto keys =
      static_cast<double>(is_selected ? tokens * kSelected : blocks * kTokensPerBlock);
  bench.Row(
      "latent_attention", shape,
      {.bytes = keys * LatentBlock::kTokenBytes +
                static_cast<double>(tokens * heads) * (2 * kLatentValues + 64) * 2.0,
       .flops = keys * static_cast<double>(heads) * 2.0 * (2 * kLatentValues + 64)},
      [&] {
        bench.backend().LatentAttention({.q_latent = HeadsOf(latent.view, heads),
                                         .q_rope = ColumnsOf(HeadsOf(q.view, heads), kNope, 64),
                                         .cache = {.data = cache.As<std::uint8_t>(),
                                                   .blocks = blocks,
                                                   .format = KvFormat::kFp8},
                                         .rows = rows.view,
                                         .selection = rows.selection,
                                         .softmax_scale = 0.05,
                                         .o_latent = HeadsOf(o.view, heads)});
      });
}

// One row each of sequences of `context` tokens: selected keys or all of them.
void BenchDecode(const DeviceBench& bench, std::int64_t tokens, std::int64_t heads,
                 std::int64_t context, bool is_selected) {
  const std::vector<std::int32_t> positions(static_cast<std::size_t>(tokens),
                                            static_cast<std::int32_t>(context - 1));
  std::vector<std::int32_t> sequences;
  for (std::int64_t i = 0; i < tokens; ++i) {
    sequences.push_back(static_cast<std::int32_t>(i));
  }
  AttentionRows rows = MakeRows(bench, positions, sequences, tokens, context);
  if (!is_selected) {
    rows.selection = {};
  }
  BenchLatent(
      bench,
      fmt::format("T={} H={}, {} {}", tokens, heads, is_selected ? "2048 of" : "all of", context),
      rows, heads, tokens * context / kTokensPerBlock);
}

// The last rows of a prompt.
void BenchChunk(const DeviceBench& bench, std::int64_t tokens, std::int64_t context) {
  std::vector<std::int32_t> positions;
  for (std::int64_t i = context - tokens; i < context; ++i) {
    positions.push_back(static_cast<std::int32_t>(i));
  }
  const std::vector<std::int32_t> sequences(positions.size(), 0);
  BenchLatent(bench, fmt::format("T={} H=128, one chunk, 2048 of {}", tokens, context),
              MakeRows(bench, positions, sequences, 1, context, true), 128,
              context / kTokensPerBlock);
}

}  // namespace

void BenchAttentionOps(DeviceBench& bench) {
  for (const std::int64_t tokens : {1, 64, 2048}) {
    BenchProjections(bench, tokens, 128);
  }
  for (const std::int64_t heads : {8, 16, 128}) {
    for (const std::int64_t tokens : {1, 16, 64, 128}) {
      BenchDecode(bench, tokens, heads, 32768, true);
    }
  }
  for (const std::int64_t context : {256, 2048, 16384}) {
    BenchDecode(bench, 1, 8, context, false);
  }
  BenchDecode(bench, 128, 128, 8192, false);
  BenchDecode(bench, 512, 128, 8192, true);  // as many rows as a chunk, but nothing in common
  BenchChunk(bench, 1024, 8192);
  for (const std::int64_t context : {8192, 32768, 131072}) {
    BenchChunk(bench, 4096, context);
  }
}

}  // namespace dsa::bench
