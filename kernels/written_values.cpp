#include "kernels/written_values.h"

#include "common/numeric.h"
#include "common/view_parts.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace dsa {
namespace {

using Kind = WrittenValues::Kind;

std::int64_t BytesOf(Kind kind) {
  switch (kind) {
    case Kind::kF32: return 4;
    case Kind::kBf16: return 2;
    case Kind::kFp8E4m3:
    case Kind::kBytes: return 1;
  }
  return 0;
}

Kind KindOf(DataType type) {
  switch (type) {
    case DataType::kF32: return Kind::kF32;
    case DataType::kBf16: return Kind::kBf16;
    case DataType::kFp8E4m3: return Kind::kFp8E4m3;
    case DataType::kF64: return Kind::kBytes;
  }
  return Kind::kBytes;
}

// One record of the latent cache.
void AddLatent(WrittenList& written, const LatentCacheView& cache, std::int64_t slot) {
  const auto token = static_cast<int>(slot % kTokensPerBlock);
  std::uint8_t* const block =
      cache.data + slot / kTokensPerBlock * kTokensPerBlock * LatentTokenBytes(cache.format);
  if (cache.format != KvFormat::kFp8) {
    written.push_back({.name = "latent",
                       .data = block + token * LatentTokenBytes(cache.format),
                       .count = kLatentValues + kLatentRopeValues,
                       .kind = cache.format == KvFormat::kF32 ? Kind::kF32 : Kind::kBf16});
    return;
  }
  written.push_back({.name = "latent",
                     .data = block + LatentBlock::Values(token),
                     .count = kLatentValues,
                     .kind = Kind::kFp8E4m3});
  written.push_back({.name = "latent scales",
                     .data = block + LatentBlock::Scales(token),
                     .count = LatentBlock::kScales,
                     .kind = Kind::kF32});
  written.push_back({.name = "RoPE key",
                     .data = block + LatentBlock::Rope(token),
                     .count = kLatentRopeValues,
                     .kind = Kind::kBf16});
}

// One record of the indexer cache.
void AddIndexerKey(WrittenList& written, const IndexerCacheView& cache, std::int64_t slot) {
  const auto token = static_cast<int>(slot % kTokensPerBlock);
  std::uint8_t* const block =
      cache.data + slot / kTokensPerBlock * kTokensPerBlock * IndexerTokenBytes(cache.format);
  if (cache.format != KvFormat::kFp8) {
    written.push_back({.name = "indexer key",
                       .data = block + token * IndexerTokenBytes(cache.format),
                       .count = kIndexerValues,
                       .kind = cache.format == KvFormat::kF32 ? Kind::kF32 : Kind::kBf16});
    return;
  }
  written.push_back({.name = "indexer key",
                     .data = block + IndexerBlock::Values(token),
                     .count = kIndexerValues,
                     .kind = Kind::kFp8E4m3});
  written.push_back({.name = "indexer key scale",
                     .data = block + IndexerBlock::Scale(token),
                     .count = 1,
                     .kind = Kind::kF32});
}

double ValueAt(const std::vector<std::byte>& bytes, Kind kind, std::int64_t index) {
  const std::byte* const at = bytes.data() + index * BytesOf(kind);
  if (kind == Kind::kF32) {
    float value = 0.0F;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  if (kind == Kind::kBf16) {
    Bf16 value{};
    std::memcpy(&value, at, sizeof(value));
    return ToFloat(value);
  }
  Fp8E4m3 value{};
  std::memcpy(&value, at, sizeof(value));
  return ToFloat(value);
}

// Sums of one output.
struct Distance {
  std::int64_t bytes = 0;
  std::int64_t bytes_unequal = 0;
  double difference = 0.0;  // of squares, as `norm`
  double norm = 0.0;
  bool is_infinite = false;

  void Add(double actual, double expected) {
    if (std::isfinite(actual) && std::isfinite(expected)) {
      difference += (actual - expected) * (actual - expected);
      norm += expected * expected;
    } else {
      is_infinite = is_infinite || std::isnan(actual) != std::isnan(expected) ||
                    (!std::isnan(actual) && actual != expected);
    }
  }
  void AddBytes(const std::vector<std::byte>& actual, const std::vector<std::byte>& expected) {
    bytes += static_cast<std::int64_t>(expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      bytes_unequal += actual[i] == expected[i] ? 0 : 1;
    }
    is_infinite = is_infinite || bytes_unequal > 0;
  }
  double Unequal() const {
    return bytes == 0 ? 0.0 : static_cast<double>(bytes_unequal) / static_cast<double>(bytes);
  }
  double Relative() const {
    if (is_infinite || (norm == 0.0 && difference > 0.0)) {
      return std::numeric_limits<double>::infinity();
    }
    return norm == 0.0 ? 0.0 : std::sqrt(difference / norm);
  }
};

}  // namespace

void AddMatrix(WrittenList& written, const char* name, const AnyMatrix& matrix) {
  const bool contiguous = matrix.row_stride == matrix.cols;
  const std::int64_t pieces = contiguous ? 1 : matrix.rows;
  for (std::int64_t row = 0; matrix.data != nullptr && row < pieces; ++row) {
    written.push_back({.name = name,
                       .data = RowsOfAny(matrix, row, 1).data,
                       .count = contiguous ? matrix.rows * matrix.cols : matrix.cols,
                       .kind = KindOf(matrix.type)});
  }
}

void AddTensor(WrittenList& written, const char* name, const AnyTensor3& tensor) {
  for (std::int64_t row = 0; tensor.data != nullptr && row < tensor.rows; ++row) {
    AddMatrix(written, name,
              {.data = RowsOfAny(tensor, row, 1).data,
               .type = tensor.type,
               .rows = tensor.heads,
               .cols = tensor.cols,
               .row_stride = tensor.head_stride});
  }
}

void AddActivation(WrittenList& written, const char* name, const Activation& activation) {
  AddMatrix(written, name, activation.x);
  const QuantizedView& fp8 = activation.fp8;
  if (fp8.values.data == nullptr) {
    return;
  }
  AddMatrix(written, "fp8 copy",
            {.data = fp8.values.data,
             .type = DataType::kFp8E4m3,
             .rows = fp8.values.rows,
             .cols = fp8.values.cols,
             .row_stride = fp8.values.row_stride});
  AddMatrix(written, "fp8 scales", AsAny(fp8.scales));
}

void AddBytes(WrittenList& written, const char* name, void* data, std::int64_t bytes) {
  if (data != nullptr) {
    written.push_back({.name = name, .data = data, .count = bytes, .kind = Kind::kBytes});
  }
}

void AddLatents(WrittenList& written, Backend& backend, const LatentCacheView& cache,
                const Vector<const std::int64_t>& slots) {
  for (const std::int64_t slot : ReadVector(backend, slots)) {
    AddLatent(written, cache, slot);
  }
}

void AddIndexerKeys(WrittenList& written, Backend& backend, const IndexerCacheView& cache,
                    const Vector<const std::int64_t>& slots) {
  for (const std::int64_t slot : ReadVector(backend, slots)) {
    AddIndexerKey(written, cache, slot);
  }
}

WrittenBytes ReadBack(Backend& backend, const WrittenList& written) {
  WrittenBytes bytes;
  for (const WrittenValues& values : written) {
    auto& target =
        bytes.emplace_back(static_cast<std::size_t>(values.count * BytesOf(values.kind)));
    backend.CopyToHost(target.data(), values.data, target.size());
  }
  backend.Synchronize();
  return bytes;
}

void PutBack(Backend& backend, const WrittenList& written, const WrittenBytes& bytes) {
  for (std::size_t i = 0; i < written.size(); ++i) {
    backend.CopyToDevice(written[i].data, bytes[i].data(), bytes[i].size());
  }
}

std::map<std::string, OutputDifference> CompareOutputs(const WrittenList& written,
                                                       const WrittenBytes& actual,
                                                       const WrittenBytes& expected) {
  std::map<std::string, Distance> distances;
  for (std::size_t i = 0; i < written.size(); ++i) {
    Distance& distance = distances[written[i].name];
    if (written[i].kind == Kind::kBytes) {
      distance.AddBytes(actual[i], expected[i]);
      continue;
    }
    for (std::int64_t j = 0; j < written[i].count; ++j) {
      distance.Add(ValueAt(actual[i], written[i].kind, j),
                   ValueAt(expected[i], written[i].kind, j));
    }
  }
  std::map<std::string, OutputDifference> differences;
  for (const auto& [output, distance] : distances) {
    differences[output] = {.relative_error = distance.Relative(), .unequal = distance.Unequal()};
  }
  return differences;
}

}  // namespace dsa
