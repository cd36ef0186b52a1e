// A batch for the two forms of latent attention: cached latents of a few sequences, rows at every
// border, selections, weights.
#pragma once

#include "kernels/ops/key_selection.h"
#include "tests/kernels/paged_cache.h"

#include <cstdint>
#include <functional>
#include <vector>

namespace dsa::testing {

enum class Selection : std::uint8_t { kNone, kAll, kSome };

struct AttentionBatch {
  DataType type;
  KvFormat format;
  std::int64_t heads;
  std::int64_t nope;
  std::int64_t value;
  float softmax_scale;
  RowList rows;
  PagedLayout layout;
  std::vector<std::uint8_t> cache;
  std::int64_t selection_cols;         // K; 0: no selection
  std::vector<std::int32_t> selected;  // [T * K]
  std::vector<std::int32_t> counts;    // [T]
  std::vector<float> q;                // [T * H * (N + 64)]
  std::vector<float> w_uk;             // [H * N * 512]
  std::vector<float> w_uv;             // [H * V * 512]

  // The positions that a row attends to.
  std::vector<std::int32_t> Keys(std::int64_t row) const;
  std::vector<std::int32_t> Slots() const;  // [T * K]  of `selected`
  std::vector<std::uint64_t> Mask() const;  // [T * blocks_each]  bits of `selected`
  // Some rows.
  AttentionBatch Rows(std::int64_t first, std::int64_t count) const;
  AttentionBatch Only(std::int64_t row) const { return Rows(row, 1); }
};

struct AttentionCase {
  DataType type;
  KvFormat format;
  Selection selection;
  std::int64_t heads;
  // Rows of one sequence that see so many keys each, in place of the rows below.
  std::vector<std::int32_t> visible = {};
  std::int64_t selected = 64;  // K of kSome
};
// Rows of three sequences whose visible keys lie at, below and above the borders of blocks, of the
// selection (64) and of what is de-quantized at a time.
AttentionBatch MakeAttentionBatch(const AttentionCase& attention_case);
// The same latents in other blocks.
AttentionBatch Moved(const AttentionBatch& batch, std::uint32_t seed);

// A selection in device memory, as slots and as a mask.
class DeviceSelection final {
 public:
  DeviceSelection(Backend& backend, const AttentionBatch& batch)
      : rows_(batch.rows.size()),
        cols_(batch.selection_cols),
        words_(batch.layout.blocks_each),
        slots_(backend, batch.Slots()),
        counts_(backend, batch.counts),
        mask_(backend, batch.Mask()) {}

  KeySelection View() const {
    if (cols_ == 0) {
      return {};
    }
    return {.slots = slots_.AsConstMatrix(rows_, cols_),
            .counts = counts_.AsConstVector(),
            .mask = mask_.AsConstMatrix(rows_, words_),
            .positions = {}};
  }

 private:
  std::int64_t rows_;
  std::int64_t cols_;
  std::int64_t words_;  // a word for each block
  DeviceArray<std::int32_t> slots_;
  DeviceArray<std::int32_t> counts_;
  DeviceArray<std::uint64_t> mask_;
};

// A [heads, rows, 512] weight.
class HeadWeight final {
 public:
  HeadWeight(Backend& backend, DataType type, std::int64_t heads, const std::vector<float>& values)
      : heads_(heads),
        rows_(static_cast<std::int64_t>(values.size()) / 512 / heads),
        tensor_(backend, type, Dense(heads * rows_, 512), values) {}

  ConstAnyTensor3 View() const {
    const AnyMatrix view = tensor_.View();
    return {.data = view.data,
            .type = view.type,
            .rows = heads_,
            .heads = rows_,
            .cols = 512,
            .row_stride = rows_ * 512,
            .head_stride = 512};
  }

 private:
  std::int64_t heads_;
  std::int64_t rows_;
  DeviceTensor tensor_;
};

// Takes every key from one row of `batch`, which has a selection.  `run` gives the outputs of a
// batch, as many for each row: those of that row become zero, the others keep their bits.
void CheckRowWithoutKeysIsZero(AttentionBatch batch,
                               const std::function<std::vector<float>(const AttentionBatch&)>& run);

// round(softmax(scores)).
std::vector<double> SoftmaxExpected(DataType type, std::vector<double> scores);

}  // namespace dsa::testing
