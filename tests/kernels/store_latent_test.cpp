// StoreLatent against a double-precision restatement, read back from the bytes of the cache; every
// byte that belongs to another slot must stay as it was.
#include "kernels/ops/store_latent.h"

#include "tests/kernels/cache_writer.h"

#include <cmath>

namespace dsa::store_latent_test {
namespace {

using testing::WriterInput;

WriterInput MakeInput(DataType type, KvFormat format, float deviation) {
  WriterInput input = {
      .type = type,
      .format = format,
      .layout = RopeLayout::kInterleaved,
      .values = testing::RoundedTo(type, testing::RandomFloat(7 * 576, deviation, 21)),
      .norm_weight = testing::RandomFloat(512, 1.0F, 5),
      .norm_bias = {}};
  input.values[3] *= 64;  // an outlier (exact in bf16), so that the scales of one token differ
  return input;
}

void Store(Backend& backend, const testing::WriterCall& call) {
  auto params = call.CommonParams<StoreLatentParams>();
  params.kv = call.rows;
  backend.StoreLatent(params);
}

// c [512], then k_r [64].
std::vector<double> Expected(const WriterInput& input, std::size_t row) {
  const auto begin = input.values.begin() + static_cast<std::ptrdiff_t>(row * 576);
  std::vector<double> values(begin, begin + 576);
  double mean_square = 0.0;
  for (std::size_t i = 0; i < 512; ++i) {
    mean_square += values[i] * values[i] / 512.0;
  }
  for (std::size_t i = 0; i < 512; ++i) {
    values[i] *=
        input.norm_weight[i] / std::sqrt(mean_square + static_cast<double>(testing::kWriterEps));
  }
  testing::RotateExpected(std::span(values).subspan(512), input.positions[row], input.layout);
  values = testing::Rounded(input.type, values);
  if (input.format == KvFormat::kBf16) {
    return testing::Rounded(DataType::kBf16, values);
  }
  if (input.format == KvFormat::kFp8) {
    for (std::size_t first = 0; first < 512; first += 128) {
      testing::RoundToScaledE4m3(std::span(values).subspan(first, 128));
    }
    const std::vector<double> rope =
        testing::Rounded(DataType::kBf16, std::span(values).subspan(512));
    std::copy(rope.begin(), rope.end(), values.begin() + 512);
  }
  return values;
}

constexpr testing::CacheWriter kWriter{.width = 576,
                                       .store = Store,
                                       .expected = Expected,
                                       .empty = testing::EmptyLatents,
                                       .bytes_of = testing::LatentBytesOf,
                                       .decode = testing::DecodeLatent};

}  // namespace

TEST_CASE("StoreLatent writes the normalised latent and the rotated key",
          "[kernels][store_latent]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const float deviation = GENERATE(1e-3F, 3.0F);  // eps matters in the first
  CAPTURE(testing::Name(type), testing::Name(format), deviation);
  const auto written = testing::WriteRows(kWriter, MakeInput(type, format, deviation));
  if (type == DataType::kF32 && format == KvFormat::kF32) {
    CHECK(written.RelativeError() < 5e-7);
  } else {
    CHECK(testing::EqualShare(written.actual, written.expected) > 0.999);
  }
}

TEST_CASE("StoreLatent stores power-of-two scales", "[kernels][store_latent]") {
  const WriterInput input = MakeInput(DataType::kBf16, KvFormat::kFp8, 3.0F);
  const auto cache = testing::RunWriter(kWriter, testing::TestBackend(), input);
  for (const std::int64_t slot : input.slots) {
    for (std::int64_t block = 0; block < 4; ++block) {
      float scale = 0.0F;
      std::memcpy(&scale, cache.data() + slot * 656 + 512 + block * 4, 4);
      int exponent = 0;
      CHECK(std::frexp(scale, &exponent) == 0.5F);
    }
  }
}

TEST_CASE("StoreLatent rotates by its layout", "[kernels][store_latent]") {
  WriterInput input = MakeInput(DataType::kF32, KvFormat::kF32, 1.0F);
  input.layout = RopeLayout::kHalfSplit;
  CHECK(testing::WriteRows(kWriter, input).RelativeError() < 5e-7);
}

TEST_CASE("StoreLatent takes no rows", "[kernels][store_latent]") {
  testing::CheckTakesNoRows(kWriter, MakeInput(DataType::kF32, KvFormat::kFp8, 1.0F));
}

TEST_CASE("StoreLatent of a row depends on that row alone", "[kernels][store_latent]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  CAPTURE(testing::Name(type), testing::Name(format));
  testing::CheckRowsAreIndependent(kWriter, MakeInput(type, format, 1.0F));
}

}  // namespace dsa::store_latent_test
