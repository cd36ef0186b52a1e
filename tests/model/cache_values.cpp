#include "tests/model/cache_values.h"

#include "common/check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace dsa::testing {
namespace {

float ReadElement(const std::uint8_t* data, KvFormat format) {
  if (format == KvFormat::kF32) {
    float value = 0;
    std::memcpy(&value, data, sizeof value);
    return value;
  }
  Bf16 value{};
  std::memcpy(&value, data, sizeof value);
  return ToFloat(value);
}

void WriteElement(std::uint8_t* data, KvFormat format, float value) {
  if (format == KvFormat::kF32) {
    std::memcpy(data, &value, sizeof value);
    return;
  }
  const Bf16 narrow = ToBf16(value);
  DSA_CHECK(ToFloat(narrow) == value, "{} is no bfloat16", static_cast<double>(value));
  std::memcpy(data, &narrow, sizeof narrow);
}

float ReadFloat(const std::uint8_t* data) {
  return ReadElement(data, KvFormat::kF32);
}

// fp8 codes and the scale of 128 values that came out of a quantization by a power of two: scaling
// by the largest of them gives the same values, if not the same codes.
float EncodeFp8(const float* values, std::uint8_t* codes) {
  float largest = 0;
  for (int i = 0; i < kValuesPerScale; ++i) {
    largest = std::max(largest, std::fabs(values[i]));
  }
  const float scale = Fp8BlockScale(largest, ScaleFormat::kPowerOfTwo);
  for (int i = 0; i < kValuesPerScale; ++i) {
    const Fp8E4m3 code = ToFp8E4m3(values[i] / scale);
    DSA_CHECK(ToFloat(code) * scale == values[i], "{} is no fp8 value times {}",
              static_cast<double>(values[i]), static_cast<double>(scale));
    codes[i] = code.bits;
  }
  return scale;
}

}  // namespace

CachedLatent ReadLatent(const LatentCacheView& cache, std::int64_t slot) {
  CachedLatent cached;
  if (cache.format != KvFormat::kFp8) {
    const std::int64_t width = ElementBytes(cache.format);
    const std::uint8_t* token = cache.data + slot * LatentTokenBytes(cache.format);
    for (int i = 0; i < kLatentValues + kLatentRopeValues; ++i) {
      (i < kLatentValues ? cached.values : cached.rope)
          .push_back(ReadElement(token + i * width, cache.format));
    }
    return cached;
  }
  const int token = static_cast<int>(slot % kTokensPerBlock);
  const std::uint8_t* block = cache.data + slot / kTokensPerBlock * LatentBlock::kBytes;
  for (int i = 0; i < kLatentValues; ++i) {
    const float scale = ReadFloat(block + LatentBlock::Scales(token) + i / kValuesPerScale * 4);
    cached.values.push_back(ToFloat(Fp8E4m3{block[LatentBlock::Values(token) + i]}) * scale);
  }
  for (int i = 0; i < kLatentRopeValues; ++i) {
    cached.rope.push_back(ReadElement(block + LatentBlock::Rope(token) + i * 2, KvFormat::kBf16));
  }
  return cached;
}

std::vector<float> ReadIndexerKey(const IndexerCacheView& cache, std::int64_t slot) {
  std::vector<float> key;
  if (cache.format != KvFormat::kFp8) {
    const std::int64_t width = ElementBytes(cache.format);
    const std::uint8_t* token = cache.data + slot * IndexerTokenBytes(cache.format);
    for (int i = 0; i < kIndexerValues; ++i) {
      key.push_back(ReadElement(token + i * width, cache.format));
    }
    return key;
  }
  const int token = static_cast<int>(slot % kTokensPerBlock);
  const std::uint8_t* block = cache.data + slot / kTokensPerBlock * IndexerBlock::kBytes;
  const float scale = ReadFloat(block + IndexerBlock::Scale(token));
  for (int i = 0; i < kIndexerValues; ++i) {
    key.push_back(ToFloat(Fp8E4m3{block[IndexerBlock::Values(token) + i]}) * scale);
  }
  return key;
}

void WriteLatent(const LatentCacheView& cache, std::int64_t slot, const float* values,
                 const float* rope) {
  if (cache.format != KvFormat::kFp8) {
    const std::int64_t width = ElementBytes(cache.format);
    std::uint8_t* token = cache.data + slot * LatentTokenBytes(cache.format);
    for (int i = 0; i < kLatentValues; ++i) {
      WriteElement(token + i * width, cache.format, values[i]);
    }
    for (int i = 0; i < kLatentRopeValues; ++i) {
      WriteElement(token + (kLatentValues + i) * width, cache.format, rope[i]);
    }
    return;
  }
  const int token = static_cast<int>(slot % kTokensPerBlock);
  std::uint8_t* block = cache.data + slot / kTokensPerBlock * LatentBlock::kBytes;
  for (int part = 0; part < LatentBlock::kScales; ++part) {
    const float scale = EncodeFp8(values + part * kValuesPerScale,
                                  block + LatentBlock::Values(token) + part * kValuesPerScale);
    WriteElement(block + LatentBlock::Scales(token) + part * 4, KvFormat::kF32, scale);
  }
  for (int i = 0; i < kLatentRopeValues; ++i) {
    WriteElement(block + LatentBlock::Rope(token) + i * 2, KvFormat::kBf16, rope[i]);
  }
}

void WriteIndexerKey(const IndexerCacheView& cache, std::int64_t slot, const float* values) {
  if (cache.format != KvFormat::kFp8) {
    const std::int64_t width = ElementBytes(cache.format);
    std::uint8_t* token = cache.data + slot * IndexerTokenBytes(cache.format);
    for (int i = 0; i < kIndexerValues; ++i) {
      WriteElement(token + i * width, cache.format, values[i]);
    }
    return;
  }
  const int token = static_cast<int>(slot % kTokensPerBlock);
  std::uint8_t* block = cache.data + slot / kTokensPerBlock * IndexerBlock::kBytes;
  const float scale = EncodeFp8(values, block + IndexerBlock::Values(token));
  WriteElement(block + IndexerBlock::Scale(token), KvFormat::kF32, scale);
}

std::vector<float> ReadQuery(const AnyTensor3& queries, std::int64_t row, std::int64_t head) {
  const std::int64_t first = row * queries.row_stride + head * queries.head_stride;
  std::vector<float> values;
  for (std::int64_t i = first; i < first + queries.cols; ++i) {
    switch (queries.type) {
      case DataType::kF32: values.push_back(static_cast<const float*>(queries.data)[i]); break;
      case DataType::kBf16:
        values.push_back(ToFloat(static_cast<const Bf16*>(queries.data)[i]));
        break;
      case DataType::kFp8E4m3:
        values.push_back(ToFloat(static_cast<const Fp8E4m3*>(queries.data)[i]));
        break;
      case DataType::kF64: break;  // no query is
    }
  }
  return values;
}

float WriteQuery(const AnyTensor3& queries, std::int64_t row, std::int64_t head,
                 const float* values) {
  const std::int64_t first = row * queries.row_stride + head * queries.head_stride;
  if (queries.type == DataType::kFp8E4m3) {
    return EncodeFp8(values, static_cast<std::uint8_t*>(queries.data) + first);
  }
  for (std::int64_t i = 0; i < queries.cols; ++i) {
    if (queries.type == DataType::kF32) {
      static_cast<float*>(queries.data)[first + i] = values[i];
    } else {
      static_cast<Bf16*>(queries.data)[first + i] = ToBf16(values[i]);
    }
  }
  return 1.0F;
}

}  // namespace dsa::testing
