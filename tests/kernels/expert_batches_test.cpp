// RoutedExperts with fp8 weights over batches that no gate would choose: held to the plain ops it
// is made of (QuantizeFp8, BlockScaledLinear, SwiGlu), one expert after the other, so that both
// sides have the same products.
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/routed_experts.h"
#include "kernels/ops/swiglu.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/test_backend.h"

#include <string>

namespace dsa::expert_batches_test {
namespace {

using testing::DeviceArray;
using testing::DeviceTensor;

struct BatchSizes {
  std::int64_t hidden;
  std::int64_t width;
  std::int64_t experts;
  std::int64_t per_token;
  ScaleFormat format = ScaleFormat::kPowerOfTwo;
};

// One projection of all experts.
class DeviceWeights final {
 public:
  DeviceWeights(const BatchSizes& sizes, std::int64_t rows, std::int64_t cols, std::uint32_t seed)
      : experts_(sizes.experts), rows_(rows), cols_(cols) {
    std::vector<Fp8E4m3> codes;
    std::vector<float> scales;
    for (std::int64_t e = 0; e < experts_; ++e) {
      const auto weight = testing::RandomFp8Weight(rows, cols, ScaleFormat::kPlain,
                                                   seed + static_cast<std::uint32_t>(e));
      const auto own_codes = testing::ToFp8(weight.values);
      const auto own_scales = testing::ToFloats(weight.scales);
      codes.insert(codes.end(), own_codes.begin(), own_codes.end());
      scales.insert(scales.end(), own_scales.begin(), own_scales.end());
    }
    codes_.emplace_back(codes);
    scales_.emplace_back(scales);
  }

  StackedWeight View() const {
    return {.data = codes_[0].data(),
            .type = DataType::kFp8E4m3,
            .scales = scales_[0].data(),
            .experts = experts_,
            .rows = rows_,
            .cols = cols_};
  }
  // y = x W^T of one expert.
  void Multiply(std::int64_t expert, const QuantizedView& x, const AnyMatrix& y) const {
    const std::int64_t scale_cols = Fp8Blocks(cols_);
    const std::int64_t scale_rows = Fp8Blocks(rows_);
    testing::TestBackend().BlockScaledLinear(
        {.x = {.data = x.values.data, .rows = x.values.rows, .cols = cols_, .row_stride = cols_},
         .x_scales = {.data = x.scales.data,
                      .rows = x.scales.rows,
                      .cols = scale_cols,
                      .row_stride = scale_cols},
         .weight = {.data = codes_[0].data() + expert * rows_ * cols_,
                    .rows = rows_,
                    .cols = cols_,
                    .row_stride = cols_},
         .weight_scales = {.data = scales_[0].data() + expert * scale_rows * scale_cols,
                           .rows = scale_rows,
                           .cols = scale_cols,
                           .row_stride = scale_cols},
         .y = y});
  }

 private:
  std::int64_t experts_;
  std::int64_t rows_;
  std::int64_t cols_;
  std::vector<DeviceArray<Fp8E4m3>> codes_;
  std::vector<DeviceArray<float>> scales_;
};

// A batch of tokens with their experts.
struct Batch {
  std::int64_t tokens;
  std::vector<float> x;
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  std::vector<float> shared;  // empty: none
};

class ExpertBatches final {
 public:
  explicit ExpertBatches(const BatchSizes& sizes)
      : sizes_(sizes),
        gate_(sizes, sizes.width, sizes.hidden, 100),
        up_(sizes, sizes.width, sizes.hidden, 200),
        down_(sizes, sizes.hidden, sizes.width, 300) {}

  // Token t goes to expert_of(t, k); ids of one token differ unless they are negative.
  template <typename ExpertOf>
  Batch Make(std::int64_t tokens, bool with_shared, const ExpertOf& expert_of) const {
    Batch batch{.tokens = tokens,
                .x = Random(tokens * sizes_.hidden, 1),
                .ids = {},
                .weights = testing::RandomFloat(tokens * sizes_.per_token, 1.0F, 2),
                .shared = {}};
    if (with_shared) {
      batch.shared = Random(tokens * sizes_.hidden, 3);
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t k = 0; k < sizes_.per_token; ++k) {
        batch.ids.push_back(static_cast<std::int32_t>(expert_of(t, k)));
      }
    }
    return batch;
  }

  RoutedExpertsParams Params(const DeviceTensor& x, const DeviceArray<std::int32_t>& ids,
                             const DeviceArray<float>& weights, const DeviceTensor* shared,
                             const DeviceTensor& y) const {
    const std::int64_t tokens = x.View().rows;
    return {.x = x.View(),
            .gate = gate_.View(),
            .up = up_.View(),
            .down = down_.View(),
            .first_expert = kFirstExpert,
            .experts = ids.AsConstMatrix(tokens, sizes_.per_token),
            .weights = weights.AsConstMatrix(tokens, sizes_.per_token),
            .shared = shared != nullptr ? ConstAnyMatrix(shared->View()) : ConstAnyMatrix{},
            .scale_format = sizes_.format,
            .y = y.View()};
  }

  std::vector<float> Run(const Batch& batch) const {
    const DeviceTensor x(kType, Shape(batch.tokens), batch.x);
    const DeviceArray<std::int32_t> ids(batch.ids);
    const DeviceArray<float> weights(batch.weights);
    std::vector<DeviceTensor> shared;
    if (!batch.shared.empty()) {
      shared.emplace_back(kType, Shape(batch.tokens), batch.shared);
    }
    const auto y = DeviceTensor::Poisoned(kType, Shape(batch.tokens));
    testing::TestBackend().RoutedExperts(
        Params(x, ids, weights, shared.empty() ? nullptr : &shared[0], y));
    return y.Download();
  }

  // The same from what experts leave, pair by pair, for ranks to add up.
  std::vector<float> AddedUp(const Batch& batch) const {
    const DeviceTensor x(kType, Shape(batch.tokens), batch.x);
    const DeviceArray<std::int32_t> ids(batch.ids);
    const DeviceArray<float> weights(batch.weights);
    const auto y = DeviceTensor::Poisoned(kType, Shape(batch.tokens));
    const auto pairs = static_cast<std::int64_t>(batch.ids.size());
    const auto left = DeviceTensor::Poisoned(kType, testing::Dense(pairs, sizes_.hidden));
    const std::vector<std::uint8_t> before = y.DownloadBits();
    RoutedExpertsParams params = Params(x, ids, weights, nullptr, y);
    params.contributions = left.View();
    testing::TestBackend().RoutedExperts(params);
    CHECK(y.DownloadBits() == before);
    std::vector<std::vector<float>> outputs(batch.ids.size());
    const std::vector<float> values = left.Download();
    for (std::size_t pair = 0; pair < batch.ids.size(); ++pair) {
      if (batch.ids[pair] >= kFirstExpert && batch.ids[pair] < kFirstExpert + sizes_.experts) {
        const auto first = values.begin() + static_cast<std::ptrdiff_t>(pair) * sizes_.hidden;
        outputs[pair].assign(first, first + sizes_.hidden);
      }
    }
    return Sums(batch, outputs);
  }

  // The same by plain ops.
  std::vector<float> Composed(const Batch& batch) const {
    std::vector<std::vector<float>> outputs(batch.ids.size());  // by pair
    for (std::int64_t e = 0; e < sizes_.experts; ++e) {
      std::vector<std::size_t> pairs;
      std::vector<float> x;
      for (std::size_t pair = 0; pair < batch.ids.size(); ++pair) {
        if (batch.ids[pair] == kFirstExpert + e) {
          pairs.push_back(pair);
          const auto first = batch.x.begin() +
                             static_cast<std::ptrdiff_t>(pair) / sizes_.per_token * sizes_.hidden;
          x.insert(x.end(), first, first + sizes_.hidden);
        }
      }
      const std::vector<float> y = Expert(e, x);
      for (std::size_t i = 0; i < pairs.size(); ++i) {
        const auto first = y.begin() + static_cast<std::ptrdiff_t>(i) * sizes_.hidden;
        outputs[pairs[i]].assign(first, first + sizes_.hidden);
      }
    }
    return Sums(batch, outputs);
  }

  const BatchSizes& sizes() const { return sizes_; }
  testing::TensorShape Shape(std::int64_t tokens) const {
    return {.rows = tokens, .cols = sizes_.hidden, .row_stride = sizes_.hidden + 8};
  }

  static constexpr DataType kType = DataType::kBf16;
  static constexpr std::int32_t kFirstExpert = 5;

 private:
  static std::vector<float> Random(std::int64_t count, std::uint32_t seed) {
    return testing::RoundedTo(kType, testing::RandomFloat(count, 1.0F, seed));
  }

  // A token's outputs in the order of its choices, the shared expert's last.
  std::vector<float> Sums(const Batch& batch,
                          const std::vector<std::vector<float>>& outputs) const {
    std::vector<float> sums;
    for (std::int64_t t = 0; t < batch.tokens; ++t) {
      for (std::int64_t d = 0; d < sizes_.hidden; ++d) {
        float sum = 0.0F;
        for (std::int64_t k = 0; k < sizes_.per_token; ++k) {
          const auto pair = static_cast<std::size_t>(t * sizes_.per_token + k);
          if (!outputs[pair].empty()) {
            const float product = batch.weights[pair] * outputs[pair][static_cast<std::size_t>(d)];
            sum += product;
          }
        }
        if (!batch.shared.empty()) {
          sum += batch.shared[static_cast<std::size_t>(t * sizes_.hidden + d)];
        }
        sums.push_back(sum);
      }
    }
    return testing::RoundedTo(kType, sums);
  }

  std::vector<float> Expert(std::int64_t expert, const std::vector<float>& x_values) const {
    Backend& backend = testing::TestBackend();
    const std::int64_t rows = static_cast<std::int64_t>(x_values.size()) / sizes_.hidden;
    if (rows == 0) {
      return {};
    }
    const DeviceTensor x(kType, testing::Dense(rows, sizes_.hidden), x_values);
    const auto gate = DeviceTensor::Poisoned(kType, testing::Dense(rows, sizes_.width));
    const auto up = DeviceTensor::Poisoned(kType, testing::Dense(rows, sizes_.width));
    const auto y = DeviceTensor::Poisoned(kType, testing::Dense(rows, sizes_.hidden));
    const auto quantized = [&](const DeviceTensor& from, const auto& multiply) {
      const std::int64_t cols = from.View().cols;
      const auto codes = DeviceArray<Fp8E4m3>::Poisoned(rows * cols);
      const auto scales = DeviceArray<float>::Poisoned(rows * Fp8Blocks(cols));
      const QuantizedView view = {.values = codes.AsMatrix(rows, cols),
                                  .scales = scales.AsMatrix(rows, Fp8Blocks(cols)),
                                  .format = sizes_.format};
      backend.QuantizeFp8({.x = from.View(),
                           .values = view.values,
                           .scales = view.scales,
                           .scale_format = view.format});
      multiply(view);
      backend.Synchronize();
    };
    quantized(x, [&](const QuantizedView& view) {
      gate_.Multiply(expert, view, gate.View());
      up_.Multiply(expert, view, up.View());
    });
    backend.SwiGlu({.gate = gate.View(), .up = up.View(), .y = gate.View()});
    quantized(gate, [&](const QuantizedView& view) { down_.Multiply(expert, view, y.View()); });
    return y.Download();
  }

  BatchSizes sizes_;
  DeviceWeights gate_;
  DeviceWeights up_;
  DeviceWeights down_;
};

constexpr std::int64_t kElsewhere = 1000;  // an expert of another rank

void CheckBatch(const ExpertBatches& batches, const Batch& batch) {
  const std::vector<float> y = batches.Run(batch);
  const std::vector<float> expected = batches.Composed(batch);
  // Sums of K may be cut elsewhere: a rounding may fall to the other side, seldom.
  CHECK(testing::RelativeError(y, std::vector<double>(expected.begin(), expected.end())) < 1e-3);
  CHECK(testing::ShareEqual(y, expected) > 0.98);
}

}  // namespace

TEST_CASE("RoutedExperts is its plain ops put together", "[kernels][routed_experts][experts]") {
  const auto sizes = GENERATE(values<BatchSizes>({
      {256, 128, 4, 2},
      {256, 128, 4, 2, ScaleFormat::kPlain},
      {384, 128, 16, 4},  // half a tile of 256 columns is left
      {640, 384, 3, 3},
      {128, 256, 1, 1},
      {512, 128, 40, 9},
  }));
  const ExpertBatches batches(sizes);
  const std::int64_t first = ExpertBatches::kFirstExpert;
  CAPTURE(sizes.hidden, sizes.width, sizes.experts, static_cast<int>(sizes.format));

  SECTION("rows of every width of tile") {
    for (const std::int64_t tokens : {1, 7, 9, 16, 17, 33, 64}) {
      CAPTURE(tokens);
      CheckBatch(batches, batches.Make(tokens, tokens % 2 == 0, [&](auto t, auto k) {
        return first + (t * 7 + k) % sizes.experts;
      }));
    }
  }
  SECTION("all pairs on one expert") {
    for (const std::int64_t tokens : {65, 130}) {
      CheckBatch(batches, batches.Make(tokens, true, [&](auto /*t*/, auto k) {
        return k == sizes.per_token - 1 ? first + sizes.experts - 1 : -1;
      }));
    }
  }
  SECTION("no pair is here") {
    const Batch with_shared =
        batches.Make(5, true, [&](auto t, auto k) { return t % 2 == 0 ? -1 : kElsewhere + k; });
    CHECK(batches.Run(with_shared) == with_shared.shared);
    Batch without = with_shared;
    without.shared.clear();
    CHECK(batches.Run(without) == std::vector<float>(without.x.size(), 0.0F));
  }
  SECTION("uneven, some experts empty, some pairs elsewhere") {
    CheckBatch(batches, batches.Make(100, true, [&](auto t, auto k) {
      if ((t + k) % 3 == 0) {
        return (t + k) % 2 == 0 ? std::int64_t{-1} : first - 1;
      }
      return t % 5 == 0 ? first + (t + k) % sizes.experts
                        : first + (k < (sizes.experts + 1) / 2 ? k : kElsewhere);
    }));
  }
}

TEST_CASE("RoutedExperts follows the batch in a recorded step",
          "[kernels][routed_experts][experts]") {
  const ExpertBatches batches({.hidden = 384, .width = 256, .experts = 6, .per_token = 3});
  const std::int64_t first = ExpertBatches::kFirstExpert;
  constexpr std::int64_t kTokens = 70;
  Backend& backend = testing::TestBackend();
  const Batch start =
      batches.Make(kTokens, false, [&](auto t, auto k) { return first + (t + k) % 6; });
  const DeviceTensor x(ExpertBatches::kType, batches.Shape(kTokens), start.x);
  const DeviceArray<std::int32_t> ids(start.ids);
  const DeviceArray<float> weights(start.weights);
  const auto y = DeviceTensor::Poisoned(ExpertBatches::kType, batches.Shape(kTokens));
  constexpr GraphId kGraph{31};
  backend.Record(kGraph,
                 [&] { backend.RoutedExperts(batches.Params(x, ids, weights, nullptr, y)); });
  for (int round = 0; round < 4; ++round) {
    const Batch batch = batches.Make(kTokens, false, [&](auto t, auto k) {
      switch (round) {
        case 0: return first + (t * 5 + k) % 6;
        case 1: return k == 0 ? first + 2 : -1;  // one expert
        case 2: return std::int64_t{-1};         // none
        default: return t < 3 ? first + k : kElsewhere;
      }
    });
    backend.CopyToDevice(ids.data(), batch.ids.data(), batch.ids.size() * sizeof(std::int32_t));
    backend.Replay(kGraph);
    backend.Synchronize();
    CAPTURE(round);
    CHECK(y.Download() == batches.Run(batch));
    backend.Replay(kGraph);
    backend.Synchronize();
    CHECK(y.Download() == batches.Run(batch));
  }
}

TEST_CASE("RoutedExperts of many rows each", "[kernels][routed_experts][experts]") {
  const auto sizes = GENERATE(values<BatchSizes>({
      {256, 128, 2, 2},
      {640, 384, 3, 3, ScaleFormat::kPlain},  // half a tile of 256 columns is left
      {128, 1792, 5, 5},                      // more tiles than multiprocessors
  }));
  const ExpertBatches batches(sizes);
  const std::int64_t first = ExpertBatches::kFirstExpert;
  const std::int64_t last = sizes.experts - 1;
  CAPTURE(sizes.hidden, sizes.width, sizes.experts);

  SECTION("as many each") {
    const Batch all =
        batches.Make(150, true, [&](auto t, auto k) { return first + (t + k) % sizes.experts; });
    CheckBatch(batches, all);
    const std::vector<float> together = batches.Run(all);
    for (const std::int64_t t : {0, 63, 64, 127, 128, 149}) {
      const auto row = [&](const auto& values, std::int64_t width) {
        return std::vector(values.begin() + t * width, values.begin() + (t + 1) * width);
      };
      const Batch alone{.tokens = 1,
                        .x = row(all.x, sizes.hidden),
                        .ids = row(all.ids, sizes.per_token),
                        .weights = row(all.weights, sizes.per_token),
                        .shared = row(all.shared, sizes.hidden)};
      CAPTURE(t);
      CHECK(batches.Run(alone) == row(together, sizes.hidden));
    }
  }
  SECTION("one whole tile, few pairs, none") {
    CheckBatch(batches, batches.Make(160, false, [&](auto t, auto k) {
      if (k == 0) {
        return t < 128 ? first : kElsewhere;
      }
      return k == last && t % 9 == 0 ? first + last : std::int64_t{-1};
    }));
  }
  SECTION("no pair is here") {
    const Batch batch = batches.Make(150, true, [&](auto /*t*/, auto k) { return kElsewhere + k; });
    CHECK(batches.Run(batch) == batch.shared);
  }
}

// By the plain way, the resident launch and tiles of many pairs.
TEST_CASE("RoutedExperts leaves what it would add up", "[kernels][routed_experts][experts]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 7, 150);
  const auto hidden = GENERATE(as<std::int64_t>(), 136, 640);
  const ExpertBatches batches({.hidden = hidden, .width = 256, .experts = 3, .per_token = 3});
  const Batch batch = batches.Make(tokens, true, [&](auto t, auto k) {
    return t % 5 == 4 && k == 1 ? kElsewhere : ExpertBatches::kFirstExpert + (t + k) % 3;
  });
  CAPTURE(tokens, hidden);
  CHECK(batches.AddedUp(batch) == batches.Run(batch));
}

TEST_CASE("fp8 experts of a token do not depend on its batch",
          "[kernels][routed_experts][experts]") {
  const ExpertBatches batches({.hidden = 640, .width = 256, .experts = 5, .per_token = 3});
  const Batch all = batches.Make(150, true, [&](auto t, auto k) {
    return ExpertBatches::kFirstExpert + (t % 4 == 0 ? k : (t * 3 + k) % 5);
  });
  const std::vector<float> together = batches.Run(all);
  const std::int64_t hidden = batches.sizes().hidden;
  for (const std::int64_t t : {0, 3, 64, 149}) {
    const auto row = [&](const auto& values, std::int64_t width) {
      return std::vector(values.begin() + t * width, values.begin() + (t + 1) * width);
    };
    const Batch alone{.tokens = 1,
                      .x = row(all.x, hidden),
                      .ids = row(all.ids, 3),
                      .weights = row(all.weights, 3),
                      .shared = row(all.shared, hidden)};
    CHECK(batches.Run(alone) == row(together, hidden));
  }
}

}  // namespace dsa::expert_batches_test
