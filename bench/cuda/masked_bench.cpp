// MaskedAttention of whole prompts and of chunks, over an fp8 cache of normal latents.  Operations
// are those of the visible pairs alone, masked or not; the expansion of keys and values, which a
// row that attends to a single key nearly is, has a row of its own.
#include "bench/cuda/device_bench.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/masked_attention.h"

#include <algorithm>
#include <vector>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

constexpr std::int64_t kWidth = 128;  // of a key without its RoPE part, and of a value
constexpr std::int64_t kSelected = 2048;

enum class Mask { kNone, kSelection, kFirstKey };

// The last `tokens` rows of one sequence whose blocks lie mixed.
struct MaskedRows {
  DeviceBuffer positions, sequences, tables, mask;
  PagedRows view;
  KeySelection selection;
};

MaskedRows MakeMaskedRows(const DeviceBench& bench, std::int64_t tokens, std::int64_t context,
                          Mask kind) {
  const std::int64_t blocks = context / kTokensPerBlock;
  std::vector<std::int32_t> positions;
  std::vector<std::uint64_t> mask(static_cast<std::size_t>(tokens * blocks));
  for (std::int64_t row = 0; row < tokens; ++row) {
    const std::int64_t visible = context - tokens + row + 1;
    positions.push_back(static_cast<std::int32_t>(visible - 1));
    const std::int64_t count = kind == Mask::kFirstKey ? 1 : std::min(visible, kSelected);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t key = i * visible / count;
      mask[static_cast<std::size_t>(row * blocks + key / kTokensPerBlock)] |=
          1ULL << (key % kTokensPerBlock);
    }
  }
  std::vector<std::int32_t> table(static_cast<std::size_t>(blocks));
  for (std::size_t i = 0; i < table.size(); ++i) {
    table[i] = static_cast<std::int32_t>(i * 7919 % table.size());
  }
  const std::vector<std::int32_t> sequences(positions.size(), 0);
  MaskedRows made{.positions = bench.Upload(positions.data(), tokens * 4),
                  .sequences = bench.Upload(sequences.data(), tokens * 4),
                  .tables = bench.Upload(table.data(), blocks * 4),
                  .mask = bench.Upload(mask.data(), tokens * blocks * 8),
                  .view = {},
                  .selection = {}};
  made.view = {.positions = {.data = made.positions.As<const std::int32_t>(), .size = tokens},
               .sequences = {.data = made.sequences.As<const std::int32_t>(), .size = tokens},
               .block_tables = {.data = made.tables.As<const std::int32_t>(),
                                .rows = 1,
                                .cols = blocks,
                                .row_stride = blocks}};
  if (kind != Mask::kNone) {
    made.selection.mask = {.data = made.mask.As<const std::uint64_t>(),
                           .rows = tokens,
                           .cols = blocks,
                           .row_stride = blocks};
  }
  return made;
}

void BenchMasked(const DeviceBench& bench, std::int64_t tokens, std::int64_t context,
                 std::int64_t heads, Mask kind) {
  const MaskedRows rows = MakeMaskedRows(bench, tokens, context, kind);
  const std::int64_t blocks = context / kTokensPerBlock;
  const DeviceBuffer cache = bench.RandomLatents(blocks);
  const DeviceOperand q = bench.Random(DataType::kBf16, tokens, heads * (kWidth + 64));
  const DeviceOperand w_uk = bench.Random(DataType::kBf16, heads * kWidth, kLatentValues);
  const DeviceOperand w_uv = bench.Random(DataType::kBf16, heads * kWidth, kLatentValues);
  const DeviceOperand o = bench.Random(DataType::kBf16, tokens, heads * kWidth);
  const double pairs = static_cast<double>(tokens) *
                       (static_cast<double>(context) - static_cast<double>(tokens) / 2.0);
  const double expansion = static_cast<double>(heads * context) * 4.0 * kWidth * kLatentValues;
  const std::string shape = kind == Mask::kFirstKey
                                ? fmt::format("expansion of {}, H={}", context, heads)
                                : fmt::format("T={} of {} H={}{}", tokens, context, heads,
                                              kind == Mask::kNone ? " dense" : "");
  bench.Row("masked_attention", shape,
            {.bytes = static_cast<double>(context) * LatentBlock::kTokenBytes,
             .flops = kind == Mask::kFirstKey
                          ? expansion
                          : static_cast<double>(heads) * pairs * 2.0 * (2 * kWidth + 64)},
            [&] {
              bench.backend().MaskedAttention({.q = HeadsOf(q.view, heads),
                                               .w_uk = HeadWeight(w_uk, heads, kWidth),
                                               .w_uv = HeadWeight(w_uv, heads, kWidth),
                                               .cache = {.data = cache.As<std::uint8_t>(),
                                                         .blocks = blocks,
                                                         .format = KvFormat::kFp8},
                                               .rows = rows.view,
                                               .selection = rows.selection,
                                               .softmax_scale = 0.05,
                                               .o = HeadsOf(o.view, heads)});
            });
}

}  // namespace

void BenchMaskedOps(DeviceBench& bench) {
  constexpr std::int64_t kHeads = 128;
  for (const std::int64_t context : {2048, 4096, 7168}) {
    BenchMasked(bench, 1, context, kHeads, Mask::kFirstKey);
    BenchMasked(bench, context, context, kHeads, Mask::kSelection);
    BenchMasked(bench, context, context, kHeads, Mask::kNone);
  }
  BenchMasked(bench, 1024, 1024, kHeads, Mask::kSelection);
  BenchMasked(bench, 1024, 8192, kHeads, Mask::kSelection);
  BenchMasked(bench, 4096, 4096, 8, Mask::kSelection);
  BenchMasked(bench, 192, 4096, 8, Mask::kSelection);
}

}  // namespace dsa::bench
