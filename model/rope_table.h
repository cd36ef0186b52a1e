// The cosines and sines of every position, in device memory: built once on the host in double and
// rounded to float32, so that all backends rotate by the same numbers.  Immutable after Create.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "kernels/ops/rope.h"

#include <cstdint>
#include <span>
#include <vector>

namespace dsa {

// Row-major [positions, frequencies] on the host.
struct RopeValues {
  std::vector<float> cos;
  std::vector<float> sin;
};

// cos and sin of position * frequencies[i] for positions in [0, positions); the product and the
// functions in double.
RopeValues ComputeRopeValues(std::span<const double> frequencies, std::int64_t positions);

class DeviceRopeTable final {
 public:
  // What Create allocates, in bytes.
  static std::int64_t Bytes(std::span<const double> frequencies, std::int64_t positions);

  // FAILED_PRECONDITION where the device has not the memory.
  static Result<DeviceRopeTable> Create(Backend& backend, std::span<const double> frequencies,
                                        std::int64_t positions);

  RopeTable view() const;

 private:
  DeviceRopeTable() = default;

  DeviceBuffer cos_;
  DeviceBuffer sin_;
  std::int64_t positions_ = 0;
  std::int64_t frequencies_ = 0;
};

}  // namespace dsa
