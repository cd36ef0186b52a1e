// A call of SelectKeys on CUDA, against its default body, the scores' bits included.
#pragma once

#include "kernels/cuda/cuda_backend.h"
#include "kernels/forwarding_backend.h"
#include "kernels/fused/select_keys.h"
#include "tests/kernels/paged_cache.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

namespace dsa::testing::select_keys {

// Plain ops of the test backend, fused ones by their default bodies.
class PlainBodies final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
};

struct Shape {
  RowList rows;
  std::int64_t sequences;
  std::int64_t context;  // a multiple of 64
  std::int64_t heads;
  std::int64_t k;
  std::int64_t score_rows;
  DataType type = DataType::kBf16;
  std::int64_t absorbed_heads = 0;  // of attention's queries, absorbed as well
};

// What a call writes.
struct Output {
  std::vector<std::int32_t> slots;
  std::vector<std::uint64_t> mask;
  std::vector<std::int32_t> counts;
  std::vector<std::int32_t> faults;
  std::vector<float> scores;    // of the last tile
  std::vector<float> q;         // of attention, rotated
  std::vector<float> q_latent;  // and absorbed

  bool operator==(const Output& other) const {
    return slots == other.slots && mask == other.mask && counts == other.counts &&
           faults == other.faults && q == other.q && q_latent == other.q_latent;
  }
};

// Scores that differ in their bits.
inline std::size_t DifferentBits(const std::vector<float>& a, const std::vector<float>& b) {
  std::size_t different = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    different += std::bit_cast<std::uint32_t>(a[i]) == std::bit_cast<std::uint32_t>(b[i]) ? 0 : 1;
  }
  return different;
}

class Problem final {
 public:
  explicit Problem(Shape shape) : shape_(std::move(shape)) {
    std::mt19937 engine(11);
    layout_ = ShuffledBlocks(shape_.sequences, shape_.context / 64, 3);
    cache_.resize(static_cast<std::size_t>(layout_.blocks) * 8448);
    for (std::size_t i = 0; i < cache_.size(); i += 4) {
      const auto codes = static_cast<std::uint32_t>(engine()) & 0xBFBFBFBFU;  // below 2: no NaN
      std::memcpy(&cache_[i], &codes, sizeof(codes));
      if (i % 8448 >= 8192) {
        const float scale = 0.01F * static_cast<float>(1 + codes % 7);
        std::memcpy(&cache_[i], &scale, sizeof(scale));
      }
    }
    const std::int64_t rows = shape_.rows.size();
    q_ = RandomFloat(rows * shape_.heads * 128, 1.0F, 21);
    head_weights_ = RandomFloat(rows * shape_.heads, 1.0F, 22);
  }

  std::vector<std::uint8_t>& cache() { return cache_; }
  std::vector<float>& head_weights() { return head_weights_; }
  const PagedLayout& layout() const { return layout_; }

  Output Run(Backend& runner, int replays = 0) const {
    Backend& backend = TestBackend();
    const std::int64_t rows = shape_.rows.size();
    const std::int64_t heads = shape_.heads;
    const DeviceTensor q(shape_.type, Dense(rows, heads * 128), q_);
    const DeviceTensor weights(DataType::kF32, Dense(rows, heads), head_weights_);
    const RopeTables rope(backend, 32, shape_.rows.positions);
    const DeviceArray<std::uint8_t> cache(cache_);
    const DeviceRows device_rows(backend, shape_.rows, layout_);
    const std::int64_t words = shape_.context / 64;
    const auto slots = DeviceArray<std::int32_t>::Poisoned(rows * shape_.k);
    const auto mask = DeviceArray<std::uint64_t>::Poisoned(rows * words);
    const auto counts = DeviceArray<std::int32_t>::Poisoned(rows);
    const DeviceArray<std::int32_t> faults(
        std::vector<std::int32_t>(static_cast<std::size_t>(rows), 4));
    const auto queries = DeviceTensor::Poisoned(DataType::kFp8E4m3, Dense(rows, heads * 128));
    const auto work_weights = DeviceArray<float>::Poisoned(rows * heads);
    const auto scores = DeviceArray<float>::Poisoned(shape_.score_rows * shape_.context);
    const std::int64_t absorbed_heads = std::max<std::int64_t>(shape_.absorbed_heads, 1);
    constexpr std::int64_t kNope = 128;
    const DeviceTensor attention_q(DataType::kBf16, Dense(rows, absorbed_heads * (kNope + 64)),
                                   RandomFloat(rows * absorbed_heads * (kNope + 64), 1.0F, 23));
    const DeviceTensor w_uk(DataType::kBf16, Dense(absorbed_heads * kNope, 512),
                            RandomFloat(absorbed_heads * kNope * 512, 1.0F, 24));
    const auto q_latent =
        DeviceTensor::Poisoned(DataType::kBf16, Dense(rows, absorbed_heads * 512));
    SelectKeysParams params{
        .q = q.Heads(heads),
        .head_weights = weights.View(),
        .table = rope.View(),
        .layout = RopeLayout::kHalfSplit,
        .cache = {.data = cache.data(), .blocks = layout_.blocks, .format = KvFormat::kFp8},
        .rows = device_rows.View(),
        .k = shape_.k,
        .slots = slots.AsMatrix(rows, shape_.k),
        .mask = mask.AsMatrix(rows, words),
        .counts = counts.AsVector(),
        .faults = faults.AsVector(),
        .queries = queries.Heads(heads),
        .weights = work_weights.AsMatrix(rows, heads),
        .scores = scores.AsMatrix(shape_.score_rows, shape_.context)};
    if (shape_.absorbed_heads > 0) {
      params.absorbed = {.q = attention_q.Heads(absorbed_heads),
                         .table = rope.View(),
                         .layout = RopeLayout::kInterleaved,
                         .w_uk = {.data = w_uk.View().data,
                                  .type = DataType::kBf16,
                                  .rows = absorbed_heads,
                                  .heads = kNope,
                                  .cols = 512,
                                  .row_stride = kNope * 512,
                                  .head_stride = 512},
                         .q_latent = q_latent.Heads(absorbed_heads)};
    }
    backend.Synchronize();  // the runner may have a stream of its own
    if (replays == 0) {
      runner.SelectKeys(params);
    } else {
      constexpr GraphId kGraph{7};
      runner.Record(kGraph, [&] { runner.SelectKeys(params); });
      for (int i = 0; i < replays; ++i) {
        runner.Zero(slots.data(), static_cast<std::size_t>(rows * shape_.k) * 4);
        runner.Replay(kGraph);
      }
    }
    runner.Synchronize();
    const bool absorbs = shape_.absorbed_heads > 0;
    return {.slots = slots.Download(),
            .mask = mask.Download(),
            .counts = counts.Download(),
            .faults = faults.Download(),
            .scores = scores.Download(),
            .q = absorbs ? attention_q.Download() : std::vector<float>(),
            .q_latent = absorbs ? q_latent.Download() : std::vector<float>()};
  }

  // The same selections, and the same bits of every score.
  void Check() const { Check(TestBackend()); }
  void Check(Backend& runner) const {
    PlainBodies plain(TestBackend());
    const Output expected = Run(plain);
    const Output actual = Run(runner);
    CHECK(actual.slots == expected.slots);
    CHECK(actual.mask == expected.mask);
    CHECK(actual.counts == expected.counts);
    CHECK(actual.faults == expected.faults);
    CHECK(DifferentBits(actual.scores, expected.scores) == 0);
    CHECK(DifferentBits(actual.q, expected.q) == 0);
    CHECK(DifferentBits(actual.q_latent, expected.q_latent) == 0);
  }

 private:
  Shape shape_;
  PagedLayout layout_;
  std::vector<std::uint8_t> cache_;
  std::vector<float> q_;
  std::vector<float> head_weights_;
};

// Each row the last of its own sequence.
inline RowList OneEach(const std::vector<std::int32_t>& lengths) {
  RowList rows;
  for (const std::int32_t length : lengths) {
    rows.sequences.push_back(static_cast<std::int32_t>(rows.positions.size()));
    rows.positions.push_back(length - 1);
  }
  return rows;
}

}  // namespace dsa::testing::select_keys
