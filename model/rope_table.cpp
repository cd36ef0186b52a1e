#include "model/rope_table.h"

#include "common/check.h"

#include <cmath>
#include <utility>

namespace dsa {

RopeValues ComputeRopeValues(std::span<const double> frequencies, std::int64_t positions) {
  DSA_CHECK(positions > 0, "RopeValues: {} positions", positions);
  const auto size = static_cast<std::size_t>(positions) * frequencies.size();
  RopeValues values;
  values.cos.reserve(size);
  values.sin.reserve(size);
  for (std::int64_t position = 0; position < positions; ++position) {
    for (const double frequency : frequencies) {
      const double angle = static_cast<double>(position) * frequency;
      values.cos.push_back(static_cast<float>(std::cos(angle)));
      values.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return values;
}

std::int64_t DeviceRopeTable::Bytes(std::span<const double> frequencies, std::int64_t positions) {
  constexpr std::int64_t kTables = 2;
  return kTables * positions * static_cast<std::int64_t>(frequencies.size() * sizeof(float));
}

Result<DeviceRopeTable> DeviceRopeTable::Create(Backend& backend,
                                                std::span<const double> frequencies,
                                                std::int64_t positions) {
  const RopeValues values = ComputeRopeValues(frequencies, positions);
  const std::size_t bytes = static_cast<std::size_t>(Bytes(frequencies, positions)) / 2;
  DSA_CHECK(bytes == values.cos.size() * sizeof(float), "DeviceRopeTable: {} bytes for {} values",
            bytes, values.cos.size());
  DeviceRopeTable table;
  DSA_ASSIGN_OR_RETURN(table.cos_, backend.Allocate(bytes));
  DSA_ASSIGN_OR_RETURN(table.sin_, backend.Allocate(bytes));
  backend.CopyToDevice(table.cos_.data(), values.cos.data(), bytes);
  backend.CopyToDevice(table.sin_.data(), values.sin.data(), bytes);
  table.positions_ = positions;
  table.frequencies_ = static_cast<std::int64_t>(frequencies.size());
  return table;
}

RopeTable DeviceRopeTable::view() const {
  const auto matrix = [this](const DeviceBuffer& buffer) {
    return Matrix<const float>{.data = buffer.As<const float>(),
                               .rows = positions_,
                               .cols = frequencies_,
                               .row_stride = frequencies_};
  };
  return {.cos = matrix(cos_), .sin = matrix(sin_)};
}

}  // namespace dsa
