#include "kernels/override_check.h"

#include "common/check.h"
#include "common/numeric.h"
#include "common/view_parts.h"
#include "kernels/fused/add_norm.h"
#include "kernels/fused/attend.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"
#include "kernels/fused/select_keys.h"
#include "kernels/fused/write_keys.h"
#include "kernels/kv_layout.h"

#include <algorithm>
#include <array>
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
  }
  return Kind::kBytes;
}

void AddMatrix(std::vector<WrittenValues>& written, const char* name, const AnyMatrix& matrix) {
  for (std::int64_t row = 0; matrix.data != nullptr && row < matrix.rows; ++row) {
    written.push_back({.name = name,
                       .data = RowsOfAny(matrix, row, 1).data,
                       .count = matrix.cols,
                       .kind = KindOf(matrix.type)});
  }
}

// Ids and bits.
template <typename T>
void AddExact(std::vector<WrittenValues>& written, const char* name, const Matrix<T>& matrix) {
  for (std::int64_t row = 0; matrix.data != nullptr && row < matrix.rows; ++row) {
    written.push_back({.name = name,
                       .data = matrix.Row(row),
                       .count = matrix.cols * static_cast<std::int64_t>(sizeof(T)),
                       .kind = Kind::kBytes});
  }
}
template <typename T>
void AddExact(std::vector<WrittenValues>& written, const char* name, const Vector<T>& vector) {
  AddExact(written, name,
           Matrix<T>{.data = vector.data, .rows = 1, .cols = vector.size, .row_stride = 0});
}

void AddActivation(std::vector<WrittenValues>& written, const char* name,
                   const Activation& activation) {
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

// One record of the latent cache.
void AddLatent(std::vector<WrittenValues>& written, const LatentCacheView& cache,
               std::int64_t slot) {
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
void AddIndexerKey(std::vector<WrittenValues>& written, const IndexerCacheView& cache,
                   std::int64_t slot) {
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

// Sums of squares of one output.
struct Distance {
  double difference = 0.0;
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
  double Relative() const {
    if (is_infinite || (norm == 0.0 && difference > 0.0)) {
      return std::numeric_limits<double>::infinity();
    }
    return norm == 0.0 ? 0.0 : std::sqrt(difference / norm);
  }
};

}  // namespace

OverrideCheck::Bytes OverrideCheck::ReadBack(const std::vector<WrittenValues>& written) {
  Bytes bytes;
  for (const WrittenValues& values : written) {
    auto& target =
        bytes.emplace_back(static_cast<std::size_t>(values.count * BytesOf(values.kind)));
    inner_.CopyToHost(target.data(), values.data, target.size());
  }
  inner_.Synchronize();
  return bytes;
}

void OverrideCheck::Restore(const std::vector<WrittenValues>& written, const Bytes& bytes) {
  for (std::size_t i = 0; i < written.size(); ++i) {
    inner_.CopyToDevice(written[i].data, bytes[i].data(), bytes[i].size());
  }
}

template <typename Params>
void OverrideCheck::Compare(std::string_view op, void (Backend::*method)(const Params&),
                            const Params& params,
                            void (*run_default)(OverrideCheck&, const Params&)) {
  const std::vector<WrittenValues> written = Written(params);
  const Bytes before = ReadBack(written);
  (inner_.*method)(params);
  const Bytes actual = ReadBack(written);
  Restore(written, before);
  run_default(*this, params);
  const Bytes expected = ReadBack(written);

  std::map<std::string, Distance> distances;
  for (std::size_t i = 0; i < written.size(); ++i) {
    Distance& distance = distances[written[i].name];
    if (written[i].kind == Kind::kBytes) {
      distance.is_infinite = distance.is_infinite || actual[i] != expected[i];
      continue;
    }
    for (std::int64_t j = 0; j < written[i].count; ++j) {
      distance.Add(ValueAt(actual[i], written[i].kind, j),
                   ValueAt(expected[i], written[i].kind, j));
    }
  }
  for (const auto& [output, distance] : distances) {
    OverrideDifference& largest =
        differences_
            .try_emplace(
                std::string(op) + " " + output,
                OverrideDifference{.op = std::string(op), .output = output, .relative_error = 0.0})
            .first->second;
    largest.relative_error = std::max(largest.relative_error, distance.Relative());
  }
}

std::vector<OverrideDifference> OverrideCheck::Differences() const {
  return Faults(-1.0);
}

std::vector<OverrideDifference> OverrideCheck::Faults(double tolerance) const {
  std::vector<OverrideDifference> faults;
  for (const auto& [name, difference] : differences_) {
    if (difference.relative_error > tolerance) {
      faults.push_back(difference);
    }
  }
  return faults;
}

// What each op writes, work memory apart.

std::vector<WrittenValues> OverrideCheck::Written(const AddNormParams& params) {
  std::vector<WrittenValues> written;
  AddMatrix(written, "residual", params.residual);
  AddActivation(written, "y", params.y);
  return written;
}

std::vector<WrittenValues> OverrideCheck::Written(const ProjectParams& params) {
  constexpr std::array<const char*, kProjectionsMax> kNames = {"y[0]", "y[1]", "y[2]", "y[3]"};
  std::vector<WrittenValues> written;
  for (std::size_t i = 0; i < kProjectionsMax; ++i) {
    if (params.projections[i].weight.weight.data != nullptr) {
      AddMatrix(written, kNames[i], params.projections[i].y);
    }
  }
  return written;
}

std::vector<WrittenValues> OverrideCheck::Written(const WriteKeysParams& params) {
  std::vector<WrittenValues> written;
  AddActivation(written, "query latent", params.query_latent);
  const Vector<const std::int64_t>& slots = params.latent.slots;
  std::vector<std::int64_t> host(static_cast<std::size_t>(slots.size));
  inner_.CopyToHost(host.data(), slots.data, host.size() * sizeof(std::int64_t));
  inner_.Synchronize();
  for (const std::int64_t slot : host) {
    AddLatent(written, params.latent.cache, slot);
    if (params.indexer_key) {
      AddIndexerKey(written, params.indexer_key->cache, slot);
    }
  }
  return written;
}

std::vector<WrittenValues> OverrideCheck::Written(const SelectKeysParams& params) {
  std::vector<WrittenValues> written;
  AddExact(written, "slots", params.slots);
  AddExact(written, "mask", params.mask);
  AddExact(written, "counts", params.counts);
  AddExact(written, "faults", params.faults);
  return written;
}

std::vector<WrittenValues> OverrideCheck::Written(const AttendLatentParams& params) {
  return Written(AttendMaskedParams{.attend = params.attend});
}

std::vector<WrittenValues> OverrideCheck::Written(const AttendMaskedParams& params) {
  std::vector<WrittenValues> written;
  const AnyTensor3& q = params.attend.q;  // in and out: restored, and compared
  AddMatrix(written, "q",
            {.data = q.data,
             .type = q.type,
             .rows = q.rows,
             .cols = q.heads * q.cols,
             .row_stride = q.row_stride});
  AddActivation(written, "o", params.attend.o);
  return written;
}

std::vector<WrittenValues> OverrideCheck::Written(const GatedMlpParams& params) {
  std::vector<WrittenValues> written;
  AddMatrix(written, "y", params.y);
  return written;
}

std::vector<WrittenValues> OverrideCheck::Written(const ExpertMlpParams& params) {
  std::vector<WrittenValues> written;
  AddExact(written, "experts", params.gate.experts);
  AddMatrix(written, "weights", AsAny(params.gate.weights));
  AddMatrix(written, "y", params.routed.y);
  return written;
}

// The default body of this backend's own base: its plain ops go to the backend under test.

void OverrideCheck::AddNorm(const AddNormParams& params) {
  Compare<AddNormParams>(
      "AddNorm", &Backend::AddNorm, params,
      [](OverrideCheck& check, const AddNormParams& same) { check.Backend::AddNorm(same); });
}
void OverrideCheck::Project(const ProjectParams& params) {
  Compare<ProjectParams>(
      "Project", &Backend::Project, params,
      [](OverrideCheck& check, const ProjectParams& same) { check.Backend::Project(same); });
}
void OverrideCheck::WriteKeys(const WriteKeysParams& params) {
  Compare<WriteKeysParams>(
      "WriteKeys", &Backend::WriteKeys, params,
      [](OverrideCheck& check, const WriteKeysParams& same) { check.Backend::WriteKeys(same); });
}
void OverrideCheck::SelectKeys(const SelectKeysParams& params) {
  Compare<SelectKeysParams>(
      "SelectKeys", &Backend::SelectKeys, params,
      [](OverrideCheck& check, const SelectKeysParams& same) { check.Backend::SelectKeys(same); });
}
void OverrideCheck::AttendLatent(const AttendLatentParams& params) {
  Compare<AttendLatentParams>("AttendLatent", &Backend::AttendLatent, params,
                              [](OverrideCheck& check, const AttendLatentParams& same) {
                                check.Backend::AttendLatent(same);
                              });
}
void OverrideCheck::AttendMasked(const AttendMaskedParams& params) {
  Compare<AttendMaskedParams>("AttendMasked", &Backend::AttendMasked, params,
                              [](OverrideCheck& check, const AttendMaskedParams& same) {
                                check.Backend::AttendMasked(same);
                              });
}
void OverrideCheck::GatedMlp(const GatedMlpParams& params) {
  Compare<GatedMlpParams>(
      "GatedMlp", &Backend::GatedMlp, params,
      [](OverrideCheck& check, const GatedMlpParams& same) { check.Backend::GatedMlp(same); });
}
void OverrideCheck::ExpertMlp(const ExpertMlpParams& params) {
  Compare<ExpertMlpParams>(
      "ExpertMlp", &Backend::ExpertMlp, params,
      [](OverrideCheck& check, const ExpertMlpParams& same) { check.Backend::ExpertMlp(same); });
}

}  // namespace dsa
