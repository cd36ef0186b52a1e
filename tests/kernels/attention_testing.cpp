#include "tests/kernels/attention_testing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <catch2/catch.hpp>

namespace dsa::testing {
namespace {

constexpr std::int64_t kSequences = 3;
constexpr std::int64_t kContext = 600;  // of every sequence

std::vector<float> LatentAt(std::int64_t sequence, std::int64_t position) {
  const auto seed = static_cast<std::uint32_t>(7000 + sequence * 1000 + position);
  std::vector<float> values = RandomFloat(576, 1.0F, seed);
  for (std::size_t i = 0; i < 64; ++i) {
    values[512 + i] *= 2.0F;  // RoPE keys are as large as in a model, where no norm tames them
  }
  return values;
}

// As many positions as a row may see; the rest of the cache stays NaN.
void FillCache(AttentionBatch& batch) {
  const std::int64_t context =
      1 + *std::max_element(batch.rows.positions.begin(), batch.rows.positions.end());
  batch.cache = EmptyLatents(batch.format, batch.layout.blocks);
  for (std::int64_t sequence = 0; sequence < kSequences; ++sequence) {
    for (std::int64_t position = 0; position < context; ++position) {
      EncodeLatent(batch.format, batch.cache, batch.layout.Slot(sequence, position),
                   LatentAt(sequence, position));
    }
  }
}

RowList MakeRows(const std::vector<std::int32_t>& wanted) {
  RowList rows;
  for (const std::int32_t visible : wanted) {
    rows.positions.push_back(visible - 1);
    rows.sequences.push_back(1);
  }
  if (!wanted.empty()) {
    return rows;
  }
  for (const std::int32_t visible : {1, 2, 62, 63, 64, 65, 66, 127, 129, 255, 256, 257, 600}) {
    rows.positions.push_back(visible - 1);
    rows.sequences.push_back(1);
  }
  for (const std::int32_t visible : {300, 128, 513}) {
    rows.positions.push_back(visible - 1);
    rows.sequences.push_back(visible % 3);
  }
  for (const std::int32_t visible : {40, 41, 42}) {
    rows.positions.push_back(visible - 1);
    rows.sequences.push_back(2);
  }
  return rows;
}

void MakeSelection(AttentionBatch& batch, Selection selection, std::int64_t selected) {
  batch.selection_cols = selection == Selection::kNone  ? 0
                         : selection == Selection::kAll ? batch.layout.blocks_each * 64
                                                        : selected;
  std::mt19937 engine(71);
  for (const std::int32_t last : batch.rows.positions) {
    std::vector<std::int32_t> keys(static_cast<std::size_t>(last) + 1);
    std::iota(keys.begin(), keys.end(), 0);
    std::shuffle(keys.begin(), keys.end(), engine);
    keys.resize(std::min(keys.size(), static_cast<std::size_t>(batch.selection_cols)));
    std::sort(keys.begin(), keys.end());
    batch.counts.push_back(static_cast<std::int32_t>(keys.size()));
    keys.resize(static_cast<std::size_t>(batch.selection_cols), -1);
    batch.selected.insert(batch.selected.end(), keys.begin(), keys.end());
  }
}

}  // namespace

std::vector<std::int32_t> AttentionBatch::Keys(std::int64_t row) const {
  if (selection_cols == 0) {
    std::vector<std::int32_t> keys(
        static_cast<std::size_t>(rows.positions[static_cast<std::size_t>(row)]) + 1);
    std::iota(keys.begin(), keys.end(), 0);
    return keys;
  }
  const auto begin = selected.begin() + row * selection_cols;
  return {begin, begin + counts[static_cast<std::size_t>(row)]};
}

std::vector<std::int32_t> AttentionBatch::Slots() const {
  std::vector<std::int32_t> slots;
  for (std::size_t i = 0; i < selected.size(); ++i) {
    const std::int32_t sequence = rows.sequences[i / static_cast<std::size_t>(selection_cols)];
    slots.push_back(
        selected[i] < 0 ? -1 : static_cast<std::int32_t>(layout.Slot(sequence, selected[i])));
  }
  return slots;
}

std::vector<std::uint64_t> AttentionBatch::Mask() const {
  const auto words = static_cast<std::size_t>(layout.blocks_each);
  std::vector<std::uint64_t> mask(rows.positions.size() * words, 0);
  for (std::size_t i = 0; i < selected.size(); ++i) {
    if (selected[i] >= 0) {
      const std::size_t row = i / static_cast<std::size_t>(selection_cols);
      const auto position = static_cast<std::size_t>(selected[i]);
      mask[row * words + position / 64] |= std::uint64_t{1} << (position % 64);
    }
  }
  return mask;
}

AttentionBatch AttentionBatch::Rows(std::int64_t first, std::int64_t count) const {
  const auto part = [&](const auto& values) {
    const auto each = static_cast<std::ptrdiff_t>(values.size() / rows.positions.size());
    return std::vector(values.begin() + first * each, values.begin() + (first + count) * each);
  };
  AttentionBatch some = *this;
  some.rows = {.positions = part(rows.positions), .sequences = part(rows.sequences)};
  some.selected = part(selected);
  some.counts = part(counts);
  some.q = part(q);
  return some;
}

AttentionBatch MakeAttentionBatch(const AttentionCase& attention_case) {
  const auto [type, format, selection, heads, visible, selected] = attention_case;
  const std::int64_t context =
      visible.empty() ? kContext : *std::max_element(visible.begin(), visible.end());
  AttentionBatch batch = {.type = type,
                          .format = format,
                          .heads = heads,
                          .nope = 24,
                          .value = 20,
                          .softmax_scale = 0.135F,
                          .rows = MakeRows(visible),
                          .layout = ShuffledBlocks(kSequences, (context + 63) / 64, 72),
                          .cache = {},
                          .selection_cols = 0,
                          .selected = {},
                          .counts = {},
                          .q = {},
                          .w_uk = {},
                          .w_uv = {}};
  FillCache(batch);
  MakeSelection(batch, selection, selected);
  batch.q = RoundedTo(type, RandomFloat(batch.rows.size() * heads * (batch.nope + 64), 1.0F, 73));
  batch.w_uk = RoundedTo(type, RandomFloat(heads * batch.nope * 512, 0.1F, 74));
  batch.w_uv = RoundedTo(type, RandomFloat(heads * batch.value * 512, 0.1F, 75));
  return batch;
}

AttentionBatch Moved(const AttentionBatch& batch, std::uint32_t seed) {
  AttentionBatch moved = batch;
  moved.layout = ShuffledBlocks(kSequences, batch.layout.blocks_each, seed);
  FillCache(moved);
  return moved;
}

void CheckRowWithoutKeysIsZero(
    AttentionBatch batch, const std::function<std::vector<float>(const AttentionBatch&)>& run) {
  const std::vector<float> before = run(batch);
  const auto cols = static_cast<std::ptrdiff_t>(before.size() / batch.rows.positions.size());
  constexpr std::ptrdiff_t kEmpty = 5;
  batch.counts[kEmpty] = 0;
  std::fill_n(batch.selected.begin() + kEmpty * batch.selection_cols, batch.selection_cols, -1);
  std::vector<float> expected = before;
  std::fill_n(expected.begin() + kEmpty * cols, cols, 0.0F);
  CHECK(run(batch) == expected);
}

std::vector<double> SoftmaxExpected(DataType type, std::vector<double> scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (double& score : scores) {
    score = std::exp(score - largest);
    sum += score;
  }
  for (double& score : scores) {
    score /= sum;
  }
  return Rounded(type, scores);
}

}  // namespace dsa::testing
