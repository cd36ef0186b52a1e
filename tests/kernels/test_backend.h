// The backend under test and device memory for it.  The files of operator tests are compiled once
// per backend, so no test hands host pointers to an op: it uploads inputs, poisons outputs, and
// downloads.
#pragma once

#include "kernels/backend.h"
#include "tests/testing.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {

// What the backends below have reserved.
inline constexpr ScratchLimits kTestLimits{
    .tokens_max = 160,
    .context_max = 8192,
    .masked_context_max = 1024,
    .hidden = 7168,
    .heads = 16,
    .nope = 128,
    .value = 128,
    .index_heads = 64,
    .index_topk = 2048,
    .experts = 256,
    .experts_per_token = 8,
    .expert_width = 2048,
    .linear_width_max = 7168,
    .logit_rows_max = 160,
    .vocabulary = 129280,
};

// The backend under test, its scratch reserved.  One for the process.
Backend& TestBackend();

// Backends that must give the bits of TestBackend(): other numbers of threads on the CPU.
std::span<Backend* const> BackendVariants();

// Relative error, ||actual - expected|| / ||expected||, that one rounding to `type` and float32
// sums of a few thousand terms may cause on this backend.
double Tolerance(DataType type);

// The same of a block-scaled fp8 product, and the least share of results that equal the exactly
// rounded ones.
double Fp8ProductTolerance(DataType type);
double Fp8ProductShareEqual(DataType type);

// The same of attention, whose probabilities may be rounded before they are divided by their sum.
double AttentionTolerance(DataType type);

// Whether a row of absorbed attention has the same bits in any batch.
bool AttentionRowsAreIndependent();

// Whether a row of a product has the same bits in any batch.
bool ProductRowsAreIndependent();

// Memory of a backend between two guards.  Starts with a copy of a vector or poisoned: every byte
// 0xFF, which is NaN in each float type and -1 in each integer.
template <typename T>
class DeviceArray final {
 public:
  DeviceArray(Backend& backend, const std::vector<T>& values)
      : DeviceArray(backend, static_cast<std::int64_t>(values.size())) {
    if (!values.empty()) {
      backend_->CopyToDevice(data(), values.data(), values.size() * sizeof(T));
    }
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(TestBackend(), values) {}

  static DeviceArray Poisoned(Backend& backend, std::int64_t count) {
    return DeviceArray(backend, count);
  }
  static DeviceArray Poisoned(std::int64_t count) { return Poisoned(TestBackend(), count); }

  T* data() const { return reinterpret_cast<T*>(buffer_.As<std::byte>() + kGuardBytes); }
  std::int64_t size() const { return size_; }

  Vector<T> AsVector() const { return {.data = data(), .size = size_}; }
  Matrix<T> AsMatrix(std::int64_t rows, std::int64_t cols) const {
    REQUIRE(rows * cols == size_);
    return {.data = data(), .rows = rows, .cols = cols, .row_stride = cols};
  }
  Vector<const T> AsConstVector() const { return {.data = data(), .size = size_}; }
  Matrix<const T> AsConstMatrix(std::int64_t rows, std::int64_t cols) const {
    REQUIRE(rows * cols == size_);
    return {.data = data(), .rows = rows, .cols = cols, .row_stride = cols};
  }

  // The contents; fails the test where a guard was written.
  std::vector<T> Download() const {
    std::vector<std::byte> bytes(buffer_.bytes());
    backend_->CopyToHost(bytes.data(), buffer_.data(), bytes.size());
    backend_->Synchronize();
    const std::size_t payload = static_cast<std::size_t>(size_) * sizeof(T);
    const auto guard = [](std::byte byte) { return byte == kGuard; };
    const auto begin = bytes.begin();
    REQUIRE(std::all_of(begin, begin + kGuardBytes, guard));
    REQUIRE(std::all_of(begin + kGuardBytes + static_cast<std::ptrdiff_t>(payload), bytes.end(),
                        guard));
    std::vector<T> values(static_cast<std::size_t>(size_));
    if (payload > 0) {
      std::memcpy(values.data(), bytes.data() + kGuardBytes, payload);
    }
    return values;
  }

 private:
  static constexpr std::ptrdiff_t kGuardBytes = 256;
  static constexpr std::byte kGuard{0xA5};

  DeviceArray(Backend& backend, std::int64_t count) : backend_(&backend), size_(count) {
    const std::size_t payload = static_cast<std::size_t>(count) * sizeof(T);
    std::vector<std::byte> bytes(payload + 2 * kGuardBytes, kGuard);
    std::fill_n(bytes.begin() + kGuardBytes, payload, std::byte{0xFF});
    auto buffer = backend.Allocate(bytes.size());
    REQUIRE(buffer.ok());
    buffer_ = std::move(buffer).value();
    backend.CopyToDevice(buffer_.data(), bytes.data(), bytes.size());
  }

  Backend* backend_;
  std::int64_t size_;
  DeviceBuffer buffer_;
};

// The shape of a DeviceTensor.  row_stride > cols leaves poisoned padding, which must stay so.
struct TensorShape {
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t row_stride;
};
inline TensorShape Dense(std::int64_t rows, std::int64_t cols) {
  return {.rows = rows, .cols = cols, .row_stride = cols};
}

// A matrix of run-time element type, seen from the host as floats.
class DeviceTensor final {
 public:
  // Rounds `values` [rows * cols] to `type`, which fp8 does without a scale.
  DeviceTensor(Backend& backend, DataType type, TensorShape shape, std::span<const float> values);
  DeviceTensor(DataType type, TensorShape shape, std::span<const float> values)
      : DeviceTensor(TestBackend(), type, shape, values) {}

  static DeviceTensor Poisoned(Backend& backend, DataType type, TensorShape shape);
  static DeviceTensor Poisoned(DataType type, TensorShape shape) {
    return Poisoned(TestBackend(), type, shape);
  }

  AnyMatrix View() const;
  // The same memory as [rows, heads, cols / heads].
  AnyTensor3 Heads(std::int64_t heads) const;

  // [rows * cols], converted exactly.  Fails the test where a guard or the padding was written.
  std::vector<float> Download() const;
  // The stored bits of the same values, for comparisons that must be exact (NaN equals itself).
  std::vector<std::uint8_t> DownloadBits() const;

 private:
  DeviceTensor(Backend& backend, DataType type, TensorShape shape);

  DataType type_;
  TensorShape shape_;
  DeviceArray<std::uint8_t> bytes_;
};

// `values` after a round trip through `type`: what the device really holds.
std::vector<float> RoundedTo(DataType type, std::span<const float> values);

// ||actual - expected|| / ||expected||; NaN if either has a NaN.  0 for no values, and where both
// are all zero.
double RelativeError(std::span<const float> actual, std::span<const double> expected);

// What a failed check prints for a type.
std::string Name(DataType type);

}  // namespace dsa::testing
