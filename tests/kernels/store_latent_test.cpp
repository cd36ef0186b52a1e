// StoreLatent against a double-precision restatement, read back from the bytes of the cache; every
// byte that belongs to another slot must stay as it was.
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
  std::vector<float> kv;  // [T * 576]
  std::vector<float> norm_weight;
};

constexpr std::int64_t kBlocks = 4;
constexpr float kEps = 1e-6F;

// Slots at both ends of blocks, in no order.
Input MakeInput(DataType type, KvFormat format, float deviation) {
  Input input = {.type = type,
                 .format = format,
                 .layout = RopeLayout::kInterleaved,
                 .positions = {0, 63, 64, 65, 1000, 163839, 7},
                 .slots = {3 * 64 + 63, 0, 2 * 64, 63, 64, 127, 3 * 64},
                 .kv = {},
                 .norm_weight = testing::RandomFloat(512, 1.0F, 5)};
  const auto tokens = static_cast<std::int64_t>(input.positions.size());
  input.kv = testing::RoundedTo(type, testing::RandomFloat(tokens * 576, deviation, 21));
  input.kv[3] *= 64;  // an outlier (exact in bf16), so that the scales of one token differ
  return input;
}

std::vector<std::uint8_t> Run(Backend& backend, const Input& input) {
  const auto tokens = static_cast<std::int64_t>(input.positions.size());
  const testing::DeviceTensor kv(backend, input.type,
                                 {.rows = tokens, .cols = 576, .row_stride = 584}, input.kv);
  const testing::DeviceArray<float> weight(backend, input.norm_weight);
  const testing::DeviceArray<std::int32_t> positions(backend, input.positions);
  const testing::DeviceArray<std::int64_t> slots(backend, input.slots);
  const testing::RopeTables tables(backend, 32, input.positions);
  const testing::DeviceArray<std::uint8_t> cache(backend,
                                                 testing::EmptyLatents(input.format, kBlocks));
  backend.StoreLatent({.kv = kv.View(),
                       .norm_weight = weight.AsConstVector(),
                       .eps = kEps,
                       .positions = positions.AsConstVector(),
                       .table = tables.View(),
                       .layout = input.layout,
                       .slots = slots.AsConstVector(),
                       .cache = {.data = cache.data(), .blocks = kBlocks, .format = input.format}});
  return cache.Download();
}

// What the cache holds of one row: c [512], then k_r [64].
std::vector<double> Expected(const Input& input, std::size_t row) {
  const auto begin = input.kv.begin() + static_cast<std::ptrdiff_t>(row * 576);
  std::vector<double> values(begin, begin + 576);
  double mean_square = 0.0;
  for (std::size_t i = 0; i < 512; ++i) {
    mean_square += values[i] * values[i] / 512.0;
  }
  for (std::size_t i = 0; i < 512; ++i) {
    values[i] *= input.norm_weight[i] / std::sqrt(mean_square + static_cast<double>(kEps));
  }
  testing::RotateExpected(std::span(values).subspan(512), input.positions[row], input.layout);
  values = testing::Rounded(input.type, values);
  if (input.format == KvFormat::kBf16) {
    return testing::Rounded(DataType::kBf16, values);
  }
  if (input.format == KvFormat::kFp8) {
    for (std::size_t first = 0; first < 512; first += 128) {
      const auto block = std::span(values).subspan(first, 128);
      const double scale = testing::PowerOfTwoScale(block);
      for (double& value : block) {
        value = testing::DecodeE4m3(testing::EncodeE4m3(value / scale)) * scale;
      }
    }
    const std::vector<double> rope =
        testing::Rounded(DataType::kBf16, std::span(values).subspan(512));
    std::copy(rope.begin(), rope.end(), values.begin() + 512);
  }
  return values;
}

}  // namespace

TEST_CASE("StoreLatent writes the normalised latent and the rotated key",
          "[kernels][store_latent]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const float deviation = GENERATE(1e-3F, 3.0F);  // eps matters in the first
  CAPTURE(testing::Name(type), testing::Name(format), deviation);
  const Input input = MakeInput(type, format, deviation);

  std::vector<std::uint8_t> cache = Run(testing::TestBackend(), input);

  std::vector<double> actual;
  std::vector<double> expected;
  for (std::size_t row = 0; row < input.positions.size(); ++row) {
    const auto stored = testing::DecodeLatent(format, cache, input.slots[row]);
    actual.insert(actual.end(), stored.begin(), stored.end());
    const auto wanted = Expected(input, row);
    expected.insert(expected.end(), wanted.begin(), wanted.end());
    for (const std::size_t offset : testing::LatentBytesOf(format, input.slots[row])) {
      cache[offset] = 0xFF;
    }
  }
  if (type == DataType::kF32 && format == KvFormat::kF32) {
    CHECK(testing::RelativeError(std::vector<float>(actual.begin(), actual.end()), expected) <
          5e-7);
  } else {
    CHECK(testing::EqualShare(actual, expected) > 0.999);
  }
  CHECK(cache == testing::EmptyLatents(format, kBlocks));  // no byte beside the slots
}

TEST_CASE("StoreLatent stores power-of-two scales", "[kernels][store_latent]") {
  const Input input = MakeInput(DataType::kBf16, KvFormat::kFp8, 3.0F);
  const std::vector<std::uint8_t> cache = Run(testing::TestBackend(), input);
  for (std::size_t row = 0; row < input.positions.size(); ++row) {
    for (std::size_t block = 0; block < 4; ++block) {
      float scale = 0.0F;
      std::memcpy(&scale, cache.data() + input.slots[row] * 656 + 512 + block * 4, 4);
      int exponent = 0;
      CHECK(std::frexp(scale, &exponent) == 0.5F);
    }
  }
}

TEST_CASE("StoreLatent rotates by its layout", "[kernels][store_latent]") {
  Input input = MakeInput(DataType::kF32, KvFormat::kF32, 1.0F);
  input.layout = RopeLayout::kHalfSplit;
  const std::vector<std::uint8_t> cache = Run(testing::TestBackend(), input);
  const auto actual = testing::DecodeLatent(input.format, cache, input.slots[4]);
  CHECK(testing::RelativeError(std::vector<float>(actual.begin(), actual.end()),
                               Expected(input, 4)) < 5e-7);
}

TEST_CASE("StoreLatent takes no rows", "[kernels][store_latent]") {
  Input input = MakeInput(DataType::kF32, KvFormat::kFp8, 1.0F);
  input.positions.clear();
  input.slots.clear();
  input.kv.clear();
  CHECK(Run(testing::TestBackend(), input) == testing::EmptyLatents(KvFormat::kFp8, kBlocks));
}

TEST_CASE("StoreLatent of a row depends on that row alone", "[kernels][store_latent]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  CAPTURE(testing::Name(type), testing::Name(format));
  const Input input = MakeInput(type, format, 1.0F);
  const std::vector<std::uint8_t> together = Run(testing::TestBackend(), input);
  for (Backend* backend : testing::BackendVariants()) {
    CHECK(Run(*backend, input) == together);
  }
  for (std::size_t row = 0; row < input.positions.size(); ++row) {
    Input single = input;
    const auto begin = input.kv.begin() + static_cast<std::ptrdiff_t>(row * 576);
    single.positions = {input.positions[row]};
    single.slots = {input.slots[row]};
    single.kv.assign(begin, begin + 576);
    const std::vector<std::uint8_t> alone = Run(testing::TestBackend(), single);
    for (const std::size_t offset : testing::LatentBytesOf(format, input.slots[row])) {
      REQUIRE(alone[offset] == together[offset]);
    }
  }
}

}  // namespace dsa
