#include "kernels/cuda/cuda_backend.h"
#include "tests/kernels/test_backend.h"

#include <cstdlib>
#include <iostream>
#include <memory>

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

// One rounding to bf16 is at most 2^-8 relative; float32 sums of 32
// lanes stay within a few roundings of 2^-24.
double Tolerance(DataType type) {
  return type == DataType::kF32 ? 1e-6 : 0x1p-8 + 1e-6;
}

}  // namespace dsa::testing
