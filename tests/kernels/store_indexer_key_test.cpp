// StoreIndexerKey against a double-precision restatement, read back from the bytes of the cache;
// every byte that belongs to another slot must stay as it was.
#include "tests/kernels/paged_cache.h"

#include <cmath>

namespace dsa {
namespace {

struct Input {
  DataType type;
  KvFormat format;
  RopeLayout layout;
  std::vector<std::int32_t> positions;
  std::vector<std::int64_t> slots;
  std::vector<float> k;  // [T * 128]
  std::vector<float> norm_weight;
  std::vector<float> norm_bias;
};

constexpr std::int64_t kBlocks = 4;
constexpr float kEps = 1e-6F;

// Slots at both ends of blocks, in no order.  The mean is far from zero and so is the bias.
Input MakeInput(DataType type, KvFormat format, RopeLayout layout) {
  Input input = {.type = type,
                 .format = format,
                 .layout = layout,
                 .positions = {0, 63, 64, 65, 1000, 163839, 7},
                 .slots = {3 * 64 + 63, 0, 2 * 64, 63, 64, 127, 3 * 64},
                 .k = {},
                 .norm_weight = testing::RandomFloat(128, 1.0F, 5),
                 .norm_bias = testing::RandomFloat(128, 0.5F, 6)};
  std::vector<float> k = testing::RandomFloat(7 * 128, 1.0F, 22);
  for (std::size_t i = 0; i < k.size(); ++i) {
    k[i] = i < 128 ? 1e-3F * k[i] : k[i] + 2.0F;  // eps matters in row 0
  }
  input.k = testing::RoundedTo(type, k);
  return input;
}

std::vector<std::uint8_t> Run(Backend& backend, const Input& input) {
  const auto tokens = static_cast<std::int64_t>(input.positions.size());
  const testing::DeviceTensor k(backend, input.type,
                                {.rows = tokens, .cols = 128, .row_stride = 136}, input.k);
  const testing::DeviceArray<float> weight(backend, input.norm_weight);
  const testing::DeviceArray<float> bias(backend, input.norm_bias);
  const testing::DeviceArray<std::int32_t> positions(backend, input.positions);
  const testing::DeviceArray<std::int64_t> slots(backend, input.slots);
  const testing::RopeTables tables(backend, 32, input.positions);
  const testing::DeviceArray<std::uint8_t> cache(backend,
                                                 testing::EmptyIndexerKeys(input.format, kBlocks));
  backend.StoreIndexerKey(
      {.k = k.View(),
       .norm_weight = weight.AsConstVector(),
       .norm_bias = bias.AsConstVector(),
       .eps = kEps,
       .positions = positions.AsConstVector(),
       .table = tables.View(),
       .layout = input.layout,
       .slots = slots.AsConstVector(),
       .cache = {.data = cache.data(), .blocks = kBlocks, .format = input.format}});
  return cache.Download();
}

std::vector<double> Normalized(const Input& input, std::size_t row) {
  const auto begin = input.k.begin() + static_cast<std::ptrdiff_t>(row * 128);
  std::vector<double> values(begin, begin + 128);
  double mean = 0.0;
  for (const double value : values) {
    mean += value / 128.0;
  }
  double variance = 0.0;
  for (const double value : values) {
    variance += (value - mean) * (value - mean) / 128.0;
  }
  for (std::size_t i = 0; i < 128; ++i) {
    values[i] = (values[i] - mean) / std::sqrt(variance + static_cast<double>(kEps)) *
                    input.norm_weight[i] +
                input.norm_bias[i];
  }
  return testing::Rounded(input.type, values);
}

std::vector<double> Expected(const Input& input, std::size_t row) {
  std::vector<double> values = Normalized(input, row);
  testing::RotateExpected(std::span(values).first(64), input.positions[row], input.layout);
  values = testing::Rounded(input.type, values);
  if (input.format == KvFormat::kBf16) {
    return testing::Rounded(DataType::kBf16, values);
  }
  if (input.format == KvFormat::kFp8) {
    values = testing::Rounded(input.type, testing::HadamardExpected(values));
    const double scale = testing::PowerOfTwoScale(values);
    for (double& value : values) {
      value = testing::DecodeE4m3(testing::EncodeE4m3(value / scale)) * scale;
    }
  }
  return values;
}

}  // namespace

TEST_CASE("StoreIndexerKey writes the prepared key", "[kernels][store_indexer_key]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto layout = GENERATE(RopeLayout::kHalfSplit, RopeLayout::kInterleaved);
  CAPTURE(testing::Name(type), testing::Name(format), static_cast<int>(layout));
  const Input input = MakeInput(type, format, layout);

  std::vector<std::uint8_t> cache = Run(testing::TestBackend(), input);

  std::vector<double> actual;
  std::vector<double> expected;
  for (std::size_t row = 0; row < input.positions.size(); ++row) {
    const auto stored = testing::DecodeIndexerKey(format, cache, input.slots[row]);
    actual.insert(actual.end(), stored.begin(), stored.end());
    const auto wanted = Expected(input, row);
    expected.insert(expected.end(), wanted.begin(), wanted.end());
    for (const std::size_t offset : testing::IndexerBytesOf(format, input.slots[row])) {
      cache[offset] = 0xFF;
    }
  }
  if (type == DataType::kF32 && format == KvFormat::kF32) {
    CHECK(testing::RelativeError(std::vector<float>(actual.begin(), actual.end()), expected) <
          5e-7);
  } else {
    // 896 values: at most four near the border of two roundings.
    CHECK(testing::EqualShare(actual, expected) > 0.995);
    CHECK(testing::RelativeError(std::vector<float>(actual.begin(), actual.end()), expected) <
          3e-3);
  }
  CHECK(cache == testing::EmptyIndexerKeys(format, kBlocks));  // no byte beside the slots
}

TEST_CASE("StoreIndexerKey takes no rows", "[kernels][store_indexer_key]") {
  Input input = MakeInput(DataType::kF32, KvFormat::kFp8, RopeLayout::kHalfSplit);
  input.positions.clear();
  input.slots.clear();
  input.k.clear();
  CHECK(Run(testing::TestBackend(), input) == testing::EmptyIndexerKeys(KvFormat::kFp8, kBlocks));
}

TEST_CASE("StoreIndexerKey of a row depends on that row alone", "[kernels][store_indexer_key]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  CAPTURE(testing::Name(type), testing::Name(format));
  const Input input = MakeInput(type, format, RopeLayout::kHalfSplit);
  const std::vector<std::uint8_t> together = Run(testing::TestBackend(), input);
  for (Backend* backend : testing::BackendVariants()) {
    CHECK(Run(*backend, input) == together);
  }
  for (std::size_t row = 0; row < input.positions.size(); ++row) {
    Input single = input;
    const auto begin = input.k.begin() + static_cast<std::ptrdiff_t>(row * 128);
    single.positions = {input.positions[row]};
    single.slots = {input.slots[row]};
    single.k.assign(begin, begin + 128);
    const std::vector<std::uint8_t> alone = Run(testing::TestBackend(), single);
    for (const std::size_t offset : testing::IndexerBytesOf(format, input.slots[row])) {
      REQUIRE(alone[offset] == together[offset]);
    }
  }
}

}  // namespace dsa
