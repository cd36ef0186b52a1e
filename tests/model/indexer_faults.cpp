#include "tests/model/indexer_faults.h"

#include "common/check.h"
#include "common/prng.h"
#include "common/view.h"
#include "kernels/forwarding_backend.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/select_top_k.h"
#include "kernels/ops/store_indexer_key.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace dsa::testing {
namespace {

class NoQueryHadamard final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void PrepareIndexerQuery(const PrepareIndexerQueryParams& params) override {
    const std::int64_t rows = params.q.rows;
    const std::int64_t heads = params.q.heads;
    std::vector<std::uint8_t> rotated(
        static_cast<std::size_t>(rows * heads * params.q.cols * SizeOf(params.q.type)));
    PrepareIndexerQueryParams plain = params;
    plain.format = params.q.type == DataType::kF32 ? KvFormat::kF32 : KvFormat::kBf16;
    plain.queries = {.data = rotated.data(),
                     .type = params.q.type,
                     .rows = rows,
                     .heads = heads,
                     .cols = params.q.cols,
                     .row_stride = heads * params.q.cols,
                     .head_stride = params.q.cols};
    inner_.PrepareIndexerQuery(plain);
    // A row at a time: the backend's scratch is for as many rows as a step has tokens.
    std::vector<float> scales(static_cast<std::size_t>(heads));
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t first = row * heads * params.q.cols;
      inner_.QuantizeFp8(
          {.x = {.data = rotated.data() + first * SizeOf(params.q.type),
                 .type = params.q.type,
                 .rows = heads,
                 .cols = params.q.cols,
                 .row_stride = params.q.cols},
           .values = {.data = static_cast<Fp8E4m3*>(params.queries.data) + first,
                      .rows = heads,
                      .cols = params.q.cols,
                      .row_stride = params.q.cols},
           .scales = {.data = scales.data(), .rows = heads, .cols = 1, .row_stride = 1},
           .scale_format = ScaleFormat::kPowerOfTwo});
      for (std::int64_t head = 0; head < heads; ++head) {
        params.weights.Row(row)[head] *= scales[static_cast<std::size_t>(head)];
      }
    }
  }
};

class RandomSelection final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void SelectTopK(const SelectTopKParams& params) override {
    std::vector<float> scores(static_cast<std::size_t>(params.scores.rows * params.scores.cols));
    for (float& score : scores) {
      score = CounterUniform(1, counter_++);
    }
    SelectTopKParams random = params;
    random.scores = {.data = scores.data(),
                     .rows = params.scores.rows,
                     .cols = params.scores.cols,
                     .row_stride = params.scores.cols};
    inner_.SelectTopK(random);
  }

 private:
  std::uint64_t counter_ = 0;
};

class ShiftedSelection final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void SelectTopK(const SelectTopKParams& params) override {
    DSA_CHECK(params.mask.data == nullptr, "ShiftedSelection: {} words of a mask",
              params.mask.cols);
    const std::int64_t rows = params.scores.rows;
    std::vector<std::int32_t> positions(static_cast<std::size_t>(rows * params.k));
    SelectTopKParams with_positions = params;
    with_positions.positions = {
        .data = positions.data(), .rows = rows, .cols = params.k, .row_stride = params.k};
    inner_.SelectTopK(with_positions);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int32_t* const selected = with_positions.positions.Row(row);
      const std::int32_t* const table =
          params.rows.block_tables.Row(params.rows.sequences.data[row]);
      std::set<std::int32_t> shifted;
      for (std::int32_t i = 0; i < params.counts.data[row]; ++i) {
        shifted.insert(std::max(selected[i] - kTokensPerBlock, 0));
      }
      std::int32_t* const slots = params.slots.Row(row);
      std::fill_n(slots, params.k, -1);
      std::transform(shifted.begin(), shifted.end(), slots, [table](std::int32_t position) {
        return table[position / kTokensPerBlock] * kTokensPerBlock + position % kTokensPerBlock;
      });
      params.counts.data[row] = static_cast<std::int32_t>(shifted.size());
    }
  }
};

class ZeroedIndexKeys final : public ForwardingBackend {
 public:
  ZeroedIndexKeys(Backend& inner, const std::set<std::int32_t>& positions)
      : ForwardingBackend(inner), positions_(positions) {}
  void StoreIndexerKey(const StoreIndexerKeyParams& params) override {
    inner_.StoreIndexerKey(params);
    DSA_CHECK(params.cache.format == KvFormat::kFp8, "ZeroedIndexKeys: format {}",
              static_cast<int>(params.cache.format));
    for (std::int64_t row = 0; row < params.positions.size; ++row) {
      if (positions_.contains(params.positions.data[row])) {
        const std::int64_t slot = params.slots.data[row];
        std::uint8_t* const block =
            params.cache.data + slot / kTokensPerBlock * IndexerBlock::kBytes;
        std::memset(block + IndexerBlock::Values(static_cast<int>(slot % kTokensPerBlock)), 0,
                    kIndexerValues);
      }
    }
  }

 private:
  const std::set<std::int32_t>& positions_;
};

}  // namespace

std::unique_ptr<Backend> WithoutQueryHadamard(Backend& inner) {
  return std::make_unique<NoQueryHadamard>(inner);
}

std::unique_ptr<Backend> WithRandomSelection(Backend& inner) {
  return std::make_unique<RandomSelection>(inner);
}

std::unique_ptr<Backend> WithShiftedSelection(Backend& inner) {
  return std::make_unique<ShiftedSelection>(inner);
}

std::unique_ptr<Backend> WithZeroedIndexKeys(Backend& inner,
                                             const std::set<std::int32_t>& positions) {
  return std::make_unique<ZeroedIndexKeys>(inner, positions);
}

}  // namespace dsa::testing
