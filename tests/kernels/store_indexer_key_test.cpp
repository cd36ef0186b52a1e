// StoreIndexerKey against a double-precision restatement, read back from the bytes of the cache;
// every byte that belongs to another slot must stay as it was.
#include "kernels/ops/store_indexer_key.h"

#include "tests/kernels/cache_writer.h"

#include <cmath>

namespace dsa::store_indexer_key_test {
namespace {

using testing::WriterInput;

// The mean is far from zero and so is the bias.
WriterInput MakeInput(DataType type, KvFormat format, RopeLayout layout) {
  std::vector<float> k = testing::RandomFloat(7 * 128, 1.0F, 22);
  for (std::size_t i = 0; i < k.size(); ++i) {
    k[i] = i < 128 ? 1e-3F * k[i] : k[i] + 2.0F;  // eps matters in row 0
  }
  return {.type = type,
          .format = format,
          .layout = layout,
          .values = testing::RoundedTo(type, k),
          .norm_weight = testing::RandomFloat(128, 1.0F, 5),
          .norm_bias = testing::RandomFloat(128, 0.5F, 6)};
}

void Store(Backend& backend, const testing::WriterCall& call) {
  auto params = call.CommonParams<StoreIndexerKeyParams>();
  params.k = call.rows;
  params.norm_bias = call.norm_bias;
  backend.StoreIndexerKey(params);
}

std::vector<double> Normalized(const WriterInput& input, std::size_t row) {
  const auto begin = input.values.begin() + static_cast<std::ptrdiff_t>(row * 128);
  std::vector<double> values(begin, begin + 128);
  double mean = 0.0;
  for (const double value : values) {
    mean += value / 128.0;
  }
  double variance = 0.0;
  for (const double value : values) {
    variance += (value - mean) * (value - mean) / 128.0;
  }
  const double deviation = std::sqrt(variance + static_cast<double>(testing::kWriterEps));
  for (std::size_t i = 0; i < 128; ++i) {
    values[i] = (values[i] - mean) / deviation * input.norm_weight[i] + input.norm_bias[i];
  }
  return testing::Rounded(input.type, values);
}

std::vector<double> Expected(const WriterInput& input, std::size_t row) {
  std::vector<double> values = Normalized(input, row);
  testing::RotateExpected(std::span(values).first(64), input.positions[row], input.layout);
  values = testing::Rounded(input.type, values);
  if (input.format == KvFormat::kBf16) {
    return testing::Rounded(DataType::kBf16, values);
  }
  if (input.format == KvFormat::kFp8) {
    values = testing::Rounded(input.type, testing::HadamardExpected(values));
    testing::RoundToScaledE4m3(values);
  }
  return values;
}

constexpr testing::CacheWriter kWriter{.width = 128,
                                       .store = Store,
                                       .expected = Expected,
                                       .empty = testing::EmptyIndexerKeys,
                                       .bytes_of = testing::IndexerBytesOf,
                                       .decode = testing::DecodeIndexerKey};

}  // namespace

TEST_CASE("StoreIndexerKey writes the prepared key", "[kernels][store_indexer_key]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto layout = GENERATE(RopeLayout::kHalfSplit, RopeLayout::kInterleaved);
  CAPTURE(testing::Name(type), testing::Name(format), static_cast<int>(layout));
  const auto written = testing::WriteRows(kWriter, MakeInput(type, format, layout));
  if (type == DataType::kF32 && format == KvFormat::kF32) {
    CHECK(written.RelativeError() < 5e-7);
  } else {
    // 896 values: at most four near the border of two roundings.
    CHECK(testing::EqualShare(written.actual, written.expected) > 0.995);
    CHECK(written.RelativeError() < 3e-3);
  }
}

TEST_CASE("StoreIndexerKey takes no rows", "[kernels][store_indexer_key]") {
  testing::CheckTakesNoRows(kWriter,
                            MakeInput(DataType::kF32, KvFormat::kFp8, RopeLayout::kHalfSplit));
}

TEST_CASE("StoreIndexerKey of a row depends on that row alone", "[kernels][store_indexer_key]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  CAPTURE(testing::Name(type), testing::Name(format));
  testing::CheckRowsAreIndependent(kWriter, MakeInput(type, format, RopeLayout::kHalfSplit));
}

}  // namespace dsa::store_indexer_key_test
