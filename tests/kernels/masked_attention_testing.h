// MaskedAttention of a batch, and batches of heads that CUDA multiplies by warpgroups.
#pragma once

#include "kernels/ops/masked_attention.h"
#include "tests/kernels/attention_testing.h"

#include <cstdint>
#include <vector>

namespace dsa::masked_attention_test {

using testing::AttentionBatch;
using testing::Selection;

// What a batch gives to its operators, in device memory.
struct DeviceBatch {
  testing::DeviceTensor q;
  testing::HeadWeight w_uk;
  testing::HeadWeight w_uv;
  testing::DeviceRows rows;
  testing::DeviceSelection selection;
  testing::DeviceArray<std::uint8_t> records;
  LatentCacheView cache;

  DeviceBatch(Backend& backend, const AttentionBatch& batch)
      : q(backend, batch.type, testing::Dense(batch.rows.size(), batch.heads * (batch.nope + 64)),
          batch.q),
        w_uk(backend, batch.type, batch.heads, batch.w_uk),
        w_uv(backend, batch.type, batch.heads, batch.w_uv),
        rows(backend, batch.rows, batch.layout),
        selection(backend, batch),
        records(backend, batch.cache),
        cache{.data = records.data(), .blocks = batch.layout.blocks, .format = batch.format} {}
};

inline std::vector<float> Run(Backend& backend, const AttentionBatch& batch) {
  const DeviceBatch device(backend, batch);
  const auto output =
      testing::DeviceTensor::Poisoned(backend, batch.type,
                                      {.rows = batch.rows.size(),
                                       .cols = batch.heads * batch.value,
                                       .row_stride = batch.heads * batch.value + 8});
  backend.MaskedAttention({.q = device.q.Heads(batch.heads),
                           .w_uk = device.w_uk.View(),
                           .w_uv = device.w_uv.View(),
                           .cache = device.cache,
                           .rows = device.rows.View(),
                           .selection = device.selection.View(),
                           .softmax_scale = batch.softmax_scale,
                           .o = output.Heads(batch.heads)});
  return output.Download();
}

// Which keys a row of a wide batch attends to.
enum class Pattern : std::uint8_t { kNone, kAll, kHalf, kOwn, kHoles, kRuns };

inline bool Attends(Pattern pattern, std::int32_t row, std::int32_t key) {
  switch (pattern) {
    case Pattern::kNone:
    case Pattern::kAll: return true;
    case Pattern::kHalf:
      return (static_cast<std::uint32_t>(row * 977 + key) * 2654435761U >> 31) != 0;
    case Pattern::kOwn: return row == key;
    case Pattern::kRuns: return (row > 258 || row < 126) && Attends(Pattern::kHalf, row, key);
    // Whole tiles of 64, 128 and 256 keys empty for all rows; single keys beside them; a row
    // without.
    case Pattern::kHoles:
      return row != 425 && (key == 7 || (key >= 320 && key < 384) || key == 512);
  }
  return false;
}

// Keys and values of 128, which CUDA multiplies by warpgroups: more rows of a sequence than a tile
// has, behind keys that were there before, and short runs of others.
inline AttentionBatch MakeWideBatch(KvFormat format, Pattern pattern, std::int64_t heads) {
  AttentionBatch batch = testing::MakeAttentionBatch(
      {.type = DataType::kBf16, .format = format, .selection = Selection::kNone, .heads = heads});
  batch.nope = 128;
  batch.value = 128;
  batch.softmax_scale = 0.06F;
  batch.rows = {};
  batch.counts.clear();
  const auto add_rows = [&](std::int32_t sequence, std::int32_t first, std::int32_t last) {
    for (std::int32_t position = first; position <= last; ++position) {
      batch.rows.positions.push_back(position);
      batch.rows.sequences.push_back(sequence);
    }
  };
  add_rows(2, 0, 0);
  add_rows(1, 420, 551);
  add_rows(0, 126, 129);
  add_rows(2, 599, 599);
  add_rows(0, 255, 258);
  const std::int64_t tokens = batch.rows.size();
  batch.q = testing::RoundedTo(batch.type,
                               testing::RandomFloat(tokens * batch.heads * (128 + 64), 1.0F, 83));
  batch.w_uk =
      testing::RoundedTo(batch.type, testing::RandomFloat(batch.heads * 128 * 512, 0.1F, 84));
  batch.w_uv =
      testing::RoundedTo(batch.type, testing::RandomFloat(batch.heads * 128 * 512, 0.1F, 85));
  batch.selection_cols = pattern == Pattern::kNone ? 0 : 600;
  for (const std::int32_t row : batch.rows.positions) {
    std::vector<std::int32_t> keys;
    for (std::int32_t key = 0; key <= row; ++key) {
      if (Attends(pattern, row, key)) {
        keys.push_back(key);
      }
    }
    batch.counts.push_back(static_cast<std::int32_t>(keys.size()));
    keys.resize(static_cast<std::size_t>(batch.selection_cols), -1);
    batch.selected.insert(batch.selected.end(), keys.begin(), keys.end());
  }
  return batch;
}

}  // namespace dsa::masked_attention_test
