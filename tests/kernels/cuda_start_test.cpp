// What the CUDA backend says before it has a device.  These run anywhere, with a GPU or without.
#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
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

}  // namespace dsa
