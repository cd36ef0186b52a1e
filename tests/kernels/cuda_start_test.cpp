// What the CUDA backend says before it has a device.  These run anywhere, with a GPU or without.
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_check.h"
#include "kernels/cuda/index_selection.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/linear.h"
#include "tests/this_program.h"

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("cuBLASLt is looked for by name, then under CUDA_HOME, then where toolkits lie",
          "[cuda_start]") {
  const std::vector<std::string> plain = cuda::CublasLtCandidates("");
  const std::vector<std::string> with_home = cuda::CublasLtCandidates("/opt/cuda");
  CHECK(plain.front() == "libcublasLt.so.13");
  CHECK(with_home.front() == plain.front());
  CHECK(with_home[1] == "/opt/cuda/lib64/libcublasLt.so.13");
  CHECK(plain[1] == "/usr/local/cuda/lib64/libcublasLt.so.13");
  CHECK(with_home.back() == plain.back());
  CHECK(with_home.size() > plain.size());
}

TEST_CASE("a missing cuBLASLt names every place that was tried, in one line", "[cuda_start]") {
  const auto opened = cuda::OpenCublasLt({"/nowhere/one.so", "/nowhere/two.so"});
  REQUIRE_FALSE(opened.ok());
  CHECK(opened.error().code == ErrorCode::kFailedPrecondition);
  for (const char* part : {"cuBLASLt 13", "/nowhere/one.so", "/nowhere/two.so"}) {
    CHECK(Contains(opened.error().message, part));
  }
  CHECK_FALSE(Contains(opened.error().message, "\n"));
}

TEST_CASE("another library in cuBLASLt's place is refused by the function it lacks",
          "[cuda_start]") {
  const auto opened = cuda::OpenCublasLt({"/nowhere/one.so", "libm.so.6"});
  REQUIRE_FALSE(opened.ok());
  CHECK(opened.error().message == "libm.so.6 has no cublasLtCreate");
}

TEST_CASE("a device that is not there is refused in one line", "[cuda_start]") {
  const auto made = CudaBackend::Make(63);
  REQUIRE_FALSE(made.ok());
  INFO(made.error().message);
  CHECK(made.error().code == ErrorCode::kFailedPrecondition);
  CHECK_FALSE(Contains(made.error().message, "\n"));
  CHECK((Contains(made.error().message, "no NVIDIA driver found, needed is one for CUDA 13") ||
         Contains(made.error().message, "CUDA devices") ||
         Contains(made.error().message, "no CUDA-capable device")));
}

TEST_CASE("a driver too old, or none, is refused with found and needed", "[cuda_start]") {
  const auto message = [](int version) {
    const Status status = cuda::CheckDriverVersion(version);
    CHECK((status.ok() || status.error().code == ErrorCode::kFailedPrecondition));
    return status.ok() ? std::string() : status.error().message;
  };
  const std::string needed =
      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  CHECK(message(0) ==
        "no NVIDIA driver found, needed is one for CUDA " + needed + " and a Hopper GPU");
  CHECK(message(12080) == "the driver is made for CUDA 12.8, needed is " + needed);
  CHECK_FALSE(message(CUDART_VERSION - 10).empty());
  CHECK(message(CUDART_VERSION).empty());
  CHECK(message(CUDART_VERSION + 1010).empty());
}

TEST_CASE("a GPU that is no Hopper is refused with found and needed", "[cuda_start]") {
  CHECK(cuda::CheckArchitecture("NVIDIA H200", 9, 0).ok());
  struct Case {
    const char* name;
    int major, minor;
    const char* message;
  };
  for (const Case& one :
       {Case{"NVIDIA A100", 8, 0, "NVIDIA A100 has compute capability 8.0, needed is 9.0 (Hopper)"},
        Case{"x", 9, 1, "x has compute capability 9.1, needed is 9.0 (Hopper)"},
        Case{"NVIDIA B200", 10, 0,
             "NVIDIA B200 has compute capability 10.0, needed is 9.0 (Hopper)"}}) {
    const Status status = cuda::CheckArchitecture(one.name, one.major, one.minor);
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().code == ErrorCode::kFailedPrecondition);
    CHECK(status.error().message == one.message);
  }
}

TEST_CASE("a GPU of fewer multiprocessors than blocks that wait for one another is refused",
          "[cuda_start]") {
  CHECK(cuda::CheckMultiprocessors("NVIDIA H200", 132).ok());
  CHECK(cuda::CheckMultiprocessors("x", 144).ok());
  CHECK_FALSE(cuda::CheckMultiprocessors("x", 131).ok());
  const Status status = cuda::CheckMultiprocessors("NVIDIA H100 PCIe", 114);
  REQUIRE_FALSE(status.ok());
  CHECK(status.error().code == ErrorCode::kFailedPrecondition);
  CHECK(
      status.error().message ==
      "NVIDIA H100 PCIe has 114 multiprocessors, needed are 132 (H100 SXM, H200; no MIG instance)");
}

TEST_CASE("a row of a million keys has blocks enough, however many rows there are",
          "[cuda_start]") {
  constexpr std::int64_t kBlockKeysMax = std::int64_t{1} << 19;  // IndexSelection's contract
  for (const std::int64_t keys : {8192, 65537, 131072, 1 << 19, (1 << 19) + 1, 1 << 20, 1 << 23}) {
    for (const std::int64_t rows : {1, 8, 9, 64, 132, 133, 2048, 8192}) {
      const std::int64_t cluster = cuda::IndexSelectionCluster(rows, keys);
      CAPTURE(keys, rows, cluster);
      CHECK((cluster == 1 || cluster == 2 || cluster == 4 || cluster == 8 || cluster == 16));
      CHECK((keys + cluster - 1) / cluster <= kBlockKeysMax);
    }
  }
}

// Their sizes are looked at before anything is queued, so they need neither memory nor a device.
TEST_CASE("a large product in float32 and bfloat16, which cuBLASLt does not take",
          "[.slow_product]") {
  float nothing = 0;
  constexpr std::int64_t kInputs = 7168;
  cuda::PlainLinear(
      {.x = {.data = &nothing,
             .type = DataType::kF32,
             .rows = 1,
             .cols = kInputs,
             .row_stride = kInputs},
       .weight = {.data = &nothing,
                  .type = DataType::kBf16,
                  .rows = 4096,
                  .cols = kInputs,
                  .row_stride = kInputs},
       .y =
           {.data = &nothing, .type = DataType::kF32, .rows = 1, .cols = 4096, .row_stride = 4096}},
      nullptr);
}
TEST_CASE("a large product in fp8 that no fast kernel takes", "[.slow_fp8_product]") {
  Fp8E4m3 values{};
  float scale = 1;
  constexpr std::int64_t kInputs = 7168;
  cuda::PlainBlockScaledLinear(
      {.x = {.data = &values, .rows = 1, .cols = kInputs, .row_stride = kInputs},
       .x_scales = {.data = &scale, .rows = 1, .cols = 56, .row_stride = 56},
       .weight = {.data = &values, .rows = 4100, .cols = kInputs, .row_stride = kInputs},
       .weight_scales = {.data = &scale, .rows = 33, .cols = 56, .row_stride = 56},
       .y = {.data = &scale, .type = DataType::kF32, .rows = 1, .cols = 4100, .row_stride = 4100}},
      nullptr);
}

TEST_CASE("a product that would be a hundred times too slow ends the process, by its size",
          "[cuda_start]") {
  struct Case {
    const char* tag;
    const char* message;
  };
  for (const Case& one :
       {Case{"[.slow_product]", "Linear: no fast product for N=4096 K=7168: "},
        Case{"[.slow_fp8_product]", "BlockScaledLinear: no fast product for N=4100 K=7168: "}}) {
    const testing::EndedProgram ended = testing::RunThisProgram(one.tag);
    CAPTURE(one.tag, ended.err);
    CHECK(ended.exit_code == 256 + SIGABRT);
    CHECK(Contains(ended.err, one.message));
  }
}

}  // namespace dsa
