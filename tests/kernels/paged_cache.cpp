#include "tests/kernels/paged_cache.h"

#include <bit>
#include <cmath>
#include <numeric>

namespace dsa::testing {
namespace {

constexpr std::int64_t kBlock = 64;

double Angle(std::int64_t position, std::size_t pair, std::size_t pairs) {
  return static_cast<double>(position) *
         std::pow(10000.0, -static_cast<double>(pair) / static_cast<double>(pairs));
}

std::int64_t RowBytes(KvFormat format, std::int64_t values) {
  return values * (format == KvFormat::kF32 ? 4 : 2);
}

DataType RowType(KvFormat format) {
  return format == KvFormat::kF32 ? DataType::kF32 : DataType::kBf16;
}

double DecodeRowValue(DataType type, const std::uint8_t* source) {
  if (type == DataType::kF32) {
    float value = 0.0F;
    std::memcpy(&value, source, sizeof(value));
    return value;
  }
  const std::uint32_t bits =
      (static_cast<std::uint32_t>(source[1]) << 24) | (static_cast<std::uint32_t>(source[0]) << 16);
  return std::bit_cast<float>(bits);
}

void EncodeRowValue(DataType type, float value, std::uint8_t* target) {
  const float rounded = RoundedTo(type, std::span(&value, 1)).front();
  const auto bits = std::bit_cast<std::uint32_t>(rounded);
  if (type == DataType::kF32) {
    std::memcpy(target, &bits, 4);
  } else {
    target[0] = static_cast<std::uint8_t>(bits >> 16);
    target[1] = static_cast<std::uint8_t>(bits >> 24);
  }
}

double DecodeScale(const std::uint8_t* source) {
  return DecodeRowValue(DataType::kF32, source);
}

// A scale that no value passes 448 with, larger than need be for some tokens and blocks.
float ScaleFor(std::span<const float> block, std::int64_t salt) {
  const std::vector<double> values(block.begin(), block.end());
  return static_cast<float>(PowerOfTwoScale(values) * static_cast<double>(1 << (salt % 3)));
}

void EncodeBlock(std::span<const float> block, float scale, std::uint8_t* codes) {
  for (std::size_t i = 0; i < block.size(); ++i) {
    codes[i] = EncodeE4m3(static_cast<double>(block[i]) / scale);
  }
}

}  // namespace

std::string Name(KvFormat format) {
  switch (format) {
    case KvFormat::kFp8: return "fp8 cache";
    case KvFormat::kBf16: return "bf16 cache";
    case KvFormat::kF32: return "f32 cache";
  }
  return "?";
}

PagedLayout ShuffledBlocks(std::int64_t sequences, std::int64_t blocks_each, std::uint32_t seed) {
  PagedLayout layout = {.tables = {},
                        .sequences = sequences,
                        .blocks_each = blocks_each,
                        .blocks = sequences * blocks_each + 2};
  layout.tables.resize(static_cast<std::size_t>(layout.blocks));
  std::iota(layout.tables.begin(), layout.tables.end(), 0);
  std::shuffle(layout.tables.begin(), layout.tables.end(), std::mt19937(seed));
  layout.tables.resize(static_cast<std::size_t>(sequences * blocks_each));
  return layout;
}

std::vector<std::uint8_t> EmptyLatents(KvFormat format, std::int64_t blocks) {
  const std::int64_t token = format == KvFormat::kFp8 ? 656 : RowBytes(format, 576);
  return std::vector<std::uint8_t>(static_cast<std::size_t>(blocks * kBlock * token), 0xFF);
}

std::vector<std::uint8_t> EmptyIndexerKeys(KvFormat format, std::int64_t blocks) {
  const std::int64_t token = format == KvFormat::kFp8 ? 132 : RowBytes(format, 128);
  return std::vector<std::uint8_t>(static_cast<std::size_t>(blocks * kBlock * token), 0xFF);
}

std::vector<std::size_t> LatentBytesOf(KvFormat format, std::int64_t slot) {
  const std::int64_t token = format == KvFormat::kFp8 ? 656 : RowBytes(format, 576);
  std::vector<std::size_t> offsets(static_cast<std::size_t>(token));
  std::iota(offsets.begin(), offsets.end(), static_cast<std::size_t>(slot * token));
  return offsets;
}

std::vector<std::size_t> IndexerBytesOf(KvFormat format, std::int64_t slot) {
  if (format != KvFormat::kFp8) {
    const std::int64_t token = RowBytes(format, 128);
    std::vector<std::size_t> offsets(static_cast<std::size_t>(token));
    std::iota(offsets.begin(), offsets.end(), static_cast<std::size_t>(slot * token));
    return offsets;
  }
  std::vector<std::size_t> offsets(132);
  const std::int64_t block = slot / kBlock * 8448;
  const auto scale = offsets.begin() + 128;
  std::iota(offsets.begin(), scale, static_cast<std::size_t>(block + slot % kBlock * 128));
  std::iota(scale, offsets.end(), static_cast<std::size_t>(block + 8192 + slot % kBlock * 4));
  return offsets;
}

std::vector<double> DecodeLatent(KvFormat format, const std::vector<std::uint8_t>& region,
                                 std::int64_t slot) {
  const std::uint8_t* const record = region.data() + LatentBytesOf(format, slot).front();
  std::vector<double> values(576);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (format != KvFormat::kFp8) {
      const auto size = static_cast<std::size_t>(RowBytes(format, 1));
      values[i] = DecodeRowValue(RowType(format), record + i * size);
    } else if (i < 512) {
      values[i] = DecodeE4m3(record[i]) * DecodeScale(record + 512 + i / 128 * 4);
    } else {
      values[i] = DecodeRowValue(DataType::kBf16, record + 528 + (i - 512) * 2);
    }
  }
  return values;
}

std::vector<double> DecodeIndexerKey(KvFormat format, const std::vector<std::uint8_t>& region,
                                     std::int64_t slot) {
  const std::vector<std::size_t> offsets = IndexerBytesOf(format, slot);
  std::vector<double> values(128);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (format == KvFormat::kFp8) {
      values[i] = DecodeE4m3(region[offsets[i]]) * DecodeScale(region.data() + offsets[128]);
    } else {
      const auto size = static_cast<std::size_t>(RowBytes(format, 1));
      values[i] = DecodeRowValue(RowType(format), region.data() + offsets[i * size]);
    }
  }
  return values;
}

void EncodeLatent(KvFormat format, std::vector<std::uint8_t>& region, std::int64_t slot,
                  std::span<const float> values) {
  std::uint8_t* const record = region.data() + LatentBytesOf(format, slot).front();
  if (format != KvFormat::kFp8) {
    for (std::size_t i = 0; i < 576; ++i) {
      EncodeRowValue(RowType(format), values[i],
                     record + i * static_cast<std::size_t>(RowBytes(format, 1)));
    }
    return;
  }
  for (std::size_t block = 0; block < 4; ++block) {
    const auto part = values.subspan(block * 128, 128);
    const float scale = ScaleFor(part, slot % kBlock + static_cast<std::int64_t>(block));
    EncodeBlock(part, scale, record + block * 128);
    EncodeRowValue(DataType::kF32, scale, record + 512 + block * 4);
  }
  for (std::size_t i = 0; i < 64; ++i) {
    EncodeRowValue(DataType::kBf16, values[512 + i], record + 528 + i * 2);
  }
}

void EncodeIndexerKey(KvFormat format, std::vector<std::uint8_t>& region, std::int64_t slot,
                      std::span<const float> values) {
  const std::vector<std::size_t> offsets = IndexerBytesOf(format, slot);
  if (format == KvFormat::kFp8) {
    const float scale = ScaleFor(values, slot % kBlock);
    EncodeBlock(values, scale, region.data() + offsets[0]);
    EncodeRowValue(DataType::kF32, scale, region.data() + offsets[128]);
    return;
  }
  for (std::size_t i = 0; i < 128; ++i) {
    EncodeRowValue(RowType(format), values[i],
                   region.data() + offsets[i * static_cast<std::size_t>(RowBytes(format, 1))]);
  }
}

double DecodeE4m3(std::uint8_t code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  double value = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  if ((code & 127) == 127) {
    value = std::nan("");
  }
  return (code & 128) != 0 ? -value : value;
}

std::uint8_t EncodeE4m3(double value) {
  static const std::vector<double> magnitudes = [] {
    std::vector<double> values;
    for (int code = 0; code < 127; ++code) {
      values.push_back(DecodeE4m3(static_cast<std::uint8_t>(code)));
    }
    return values;
  }();
  const double magnitude = std::min(std::fabs(value), magnitudes.back());
  const auto above = std::lower_bound(magnitudes.begin(), magnitudes.end(), magnitude);
  auto code = static_cast<int>(above - magnitudes.begin());
  if (code > 0) {
    const double up = *above - magnitude;
    const double down = magnitude - *(above - 1);
    code -= down < up || (down == up && code % 2 != 0) ? 1 : 0;
  }
  return static_cast<std::uint8_t>(std::signbit(value) ? code | 128 : code);
}

double PowerOfTwoScale(std::span<const double> block) {
  double amax = 1e-4;
  for (const double value : block) {
    amax = std::max(amax, std::fabs(value));
  }
  return std::exp2(std::ceil(std::log2(amax / 448.0)));
}

void RoundToScaledE4m3(std::span<double> block) {
  const double scale = PowerOfTwoScale(block);
  for (double& value : block) {
    value = DecodeE4m3(EncodeE4m3(value / scale)) * scale;
  }
}

std::vector<double> Rounded(DataType type, std::span<const double> values) {
  const std::vector<float> floats(values.begin(), values.end());
  const std::vector<float> rounded = RoundedTo(type, floats);
  return {rounded.begin(), rounded.end()};
}

namespace {

std::vector<float> RopeRows(std::int64_t rows, std::int64_t pairs,
                            const std::vector<std::int32_t>& positions,
                            double (*function)(double)) {
  std::vector<float> table(static_cast<std::size_t>(rows * pairs), std::nanf(""));
  const auto count = static_cast<std::size_t>(pairs);
  for (const std::int32_t position : positions) {
    for (std::size_t i = 0; i < count; ++i) {
      table[static_cast<std::size_t>(position) * count + i] =
          static_cast<float>(function(Angle(position, i, count)));
    }
  }
  return table;
}

std::int64_t RowsFor(const std::vector<std::int32_t>& positions) {
  return positions.empty() ? 1 : *std::max_element(positions.begin(), positions.end()) + 1;
}

}  // namespace

RopeTables::RopeTables(Backend& backend, std::int64_t pairs,
                       const std::vector<std::int32_t>& positions)
    : rows_(RowsFor(positions)),
      pairs_(pairs),
      cos_(backend, RopeRows(rows_, pairs, positions, std::cos)),
      sin_(backend, RopeRows(rows_, pairs, positions, std::sin)) {}

RopeTable RopeTables::View() const {
  return {.cos = cos_.AsConstMatrix(rows_, pairs_), .sin = sin_.AsConstMatrix(rows_, pairs_)};
}

void RotateExpected(std::span<double> values, std::int64_t position, RopeLayout layout) {
  const std::size_t pairs = values.size() / 2;
  for (std::size_t i = 0; i < pairs; ++i) {
    double& a = layout == RopeLayout::kInterleaved ? values[2 * i] : values[i];
    double& b = layout == RopeLayout::kInterleaved ? values[2 * i + 1] : values[i + pairs];
    const double cosine = std::cos(Angle(position, i, pairs));
    const double sine = std::sin(Angle(position, i, pairs));
    const double rotated = a * cosine - b * sine;
    b = b * cosine + a * sine;
    a = rotated;
  }
}

std::vector<double> HadamardExpected(std::span<const double> values) {
  std::vector<double> rotated(values.size(), 0.0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    for (std::size_t j = 0; j < values.size(); ++j) {
      const double sign = std::popcount(i & j) % 2 == 0 ? 1.0 : -1.0;
      rotated[i] += sign * values[j] / std::sqrt(static_cast<double>(values.size()));
    }
  }
  return rotated;
}

double EqualShare(std::span<const double> actual, std::span<const double> expected) {
  REQUIRE(actual.size() == expected.size());
  std::size_t equal = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    equal += actual[i] == expected[i] ? 1 : 0;
  }
  return actual.empty() ? 1.0 : static_cast<double>(equal) / static_cast<double>(actual.size());
}

}  // namespace dsa::testing
