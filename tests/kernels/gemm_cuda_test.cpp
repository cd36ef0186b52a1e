// Products through cuBLASLt: a weight's shape is planned once, so that a step with any number of
// rows searches nothing and allocates nothing, and may be recorded.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/gemm.h"
#include "kernels/ops/linear.h"
#include "tests/kernels/test_backend.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace dsa {
namespace {

constexpr std::int64_t kInputs = 512;
constexpr std::int64_t kOutputs = 256;
constexpr std::int64_t kRowsMax = 300;

testing::DeviceTensor Random(std::int64_t rows, std::int64_t cols, std::uint32_t seed) {
  return {DataType::kBf16, testing::Dense(rows, cols),
          testing::RandomFloat(rows * cols, 1.0F, seed)};
}

// The first `rows` of x times `weight`.
LinearParams Product(const testing::DeviceTensor& x, const testing::DeviceTensor& weight,
                     const testing::DeviceTensor& y, std::int64_t rows) {
  AnyMatrix inputs = x.View();
  AnyMatrix outputs = y.View();
  inputs.rows = rows;
  outputs.rows = rows;
  outputs.cols = weight.View().rows;
  return {.x = inputs, .weight = weight.View(), .y = outputs};
}

}  // namespace

TEST_CASE("a weight's products are planned once for all numbers of rows", "[kernels][linear]") {
  auto& backend = dynamic_cast<CudaBackend&>(testing::TestBackend());
  cuda::Gemm gemm;
  REQUIRE(gemm.Open(backend).ok());
  REQUIRE(gemm.Reserve(backend, kRowsMax, kInputs).ok());
  const auto x = Random(kRowsMax, kInputs, 1);
  const auto weight = Random(kOutputs, kInputs, 2);
  const auto other = Random(kOutputs, kInputs, 3);
  const auto narrow = Random(kOutputs / 2, kInputs, 4);
  const auto y =
      testing::DeviceTensor::Poisoned(DataType::kBf16, testing::Dense(kRowsMax, kOutputs));
  for (std::int64_t rows = kRowsMax; rows > 0; --rows) {
    REQUIRE(gemm.Multiply(Product(x, weight, y, rows), backend.stream()));
    REQUIRE(gemm.Multiply(Product(x, other, y, rows), backend.stream()));
  }
  CHECK(gemm.plans() == 1);
  REQUIRE(gemm.Multiply(Product(x, narrow, y, 1), backend.stream()));
  CHECK(gemm.plans() == 2);
  backend.Synchronize();
}

// What allocates or waits cannot be recorded.
TEST_CASE("a product of rows that no product had before is recorded", "[kernels][linear]") {
  constexpr GraphId kGraph{9};
  Backend& backend = testing::TestBackend();
  const auto x = Random(kRowsMax, kInputs, 5);
  const auto weight = Random(kOutputs, kInputs, 6);
  const auto y =
      testing::DeviceTensor::Poisoned(DataType::kBf16, testing::Dense(kRowsMax, kOutputs));
  const auto repeated =
      testing::DeviceTensor::Poisoned(DataType::kBf16, testing::Dense(kRowsMax, kOutputs));
  backend.Linear(Product(x, weight, y, 70));
  for (const std::int64_t rows : {1, 65, 97, 160, 299}) {
    CAPTURE(rows);
    backend.Record(kGraph, [&] { backend.Linear(Product(x, weight, repeated, rows)); });
    backend.Replay(kGraph);
    backend.Linear(Product(x, weight, y, rows));
    backend.Synchronize();
    const auto bits = static_cast<std::size_t>(rows * kOutputs) * sizeof(Bf16);
    const auto actual = repeated.DownloadBits();
    const auto expected = y.DownloadBits();
    CHECK(std::equal(actual.begin(), actual.begin() + static_cast<std::ptrdiff_t>(bits),
                     expected.begin()));
  }
}

}  // namespace dsa
