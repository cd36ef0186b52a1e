#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/fused_testing.h"

#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>

namespace dsa::testing {
namespace {

constexpr int kSkipped = 77;  // CTest's skip code for this binary

std::unique_ptr<CudaBackend> MakeBackend() {
  auto backend = CudaBackend::Make(0);
  if (!backend.ok()) {
    std::cerr << "skipped: " << backend.error().message << "\n";
    std::exit(kSkipped);
  }
  REQUIRE(backend.value()->ReserveScratch(kTestLimits).ok());
  return std::move(backend).value();
}

}  // namespace

Backend& TestBackend() {
  static const std::unique_ptr<CudaBackend> backend = MakeBackend();
  return *backend;
}

// One device, one way to run: nothing promises equal bits with another.
std::span<Backend* const> BackendVariants() {
  return {};
}

// One rounding to bf16 is at most 2^-8 relative.  The tensor cores cut
// off what they shift out of a float32 sum: up to 2^-23 an addition, and a product of 7168 terms
// takes 448 of them, whose errors mostly cancel.
double Tolerance(DataType type) {
  return type == DataType::kF32 ? 4e-6 : 0x1p-8 + 4e-6;
}

// Hopper's fp8 products are summed with 13 fraction bits over 128 columns before they are added in
// float32: 2^-13 of the largest term at worst.
double Fp8ProductTolerance(DataType type) {
  return type == DataType::kF32 ? 3e-4 : 0x1p-8 + 3e-4;
}

// An error of 1.3e-4 against bf16's spacing of 2^-8 to 2^-7 moves one value in thirty, more where
// terms cancel.
double Fp8ProductShareEqual(DataType type) {
  return type == DataType::kF32 ? -1.0 : 0.88;
}

// bf16 probabilities are rounded before the division: 2^-9 of each, at worst in one direction, and
// the output once more.
double AttentionTolerance(DataType type) {
  return type == DataType::kF32 ? 4e-6 : 0x1p-8;
}

// How many parts a row's keys are cut into follows from the number of rows.
bool AttentionRowsAreIndependent() {
  return false;
}

// cuBLASLt chooses its algorithm by the number of rows.
bool ProductRowsAreIndependent() {
  return false;
}

// A sum in another order moves few values to the next of their type: a step of bf16 is 2^-8, one of
// e4m3 2^-4, one of a power-of-two scale 1.
double OverrideTolerance(const OverrideDifference& difference) {
  if (difference.output.find("scale") != std::string::npos) {
    return 3e-2;
  }
  const bool is_fp8 = difference.output == "fp8 copy" || difference.output == "latent" ||
                      difference.output == "indexer key";
  return is_fp8 ? 1e-2 : 2e-3;
}

}  // namespace dsa::testing
