#include "kernels/cpu/cpu_backend.h"
#include "tests/kernels/fused_testing.h"

#include <memory>

namespace dsa::testing {
namespace {

std::unique_ptr<CpuBackend> MakeBackend(int threads) {
  auto backend = std::make_unique<CpuBackend>(threads);
  REQUIRE(backend->ReserveScratch(kTestLimits).ok());
  return backend;
}

}  // namespace

Backend& TestBackend() {
  static const std::unique_ptr<CpuBackend> backend = MakeBackend(2);
  return *backend;
}

std::span<Backend* const> BackendVariants() {
  static const std::unique_ptr<CpuBackend> one = MakeBackend(1);
  static const std::unique_ptr<CpuBackend> five = MakeBackend(5);
  static Backend* const variants[] = {one.get(), five.get()};
  return variants;
}

// One rounding to bf16 is at most 2^-8 relative; float32 sums of 8 lanes stay within a few
// roundings of 2^-24.
double Tolerance(DataType type) {
  return type == DataType::kF32 ? 5e-7 : 0x1p-8 + 5e-7;
}

double Fp8ProductTolerance(DataType type) {
  return Tolerance(type);
}

// Only near-ties may fall to the other side.  In float32 with scales of powers of two, a block's
// sums are inexact one time in a thousand.
double Fp8ProductShareEqual(DataType type) {
  return type == DataType::kF32 ? 0.9 : 0.99;
}

// Only values near the border of two roundings differ in bf16.  Scores of tens carry float32 errors
// of 2^-24 times that into the exponent.
double AttentionTolerance(DataType type) {
  return type == DataType::kF32 ? 2e-6 : 3e-4;
}

bool AttentionRowsAreIndependent() {
  return true;
}

bool ProductRowsAreIndependent() {
  return true;
}

// It has no overrides.
double OverrideTolerance(const OverrideDifference& /*difference*/) {
  return 0.0;
}

}  // namespace dsa::testing
