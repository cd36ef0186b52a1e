// The scratch that is planned is the scratch that is allocated.  Replaces the aligned operators of
// the binary, which scratch alone uses while it is reserved.
#include "kernels/cpu/cpu_backend.h"
#include "tests/kernels/test_backend.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#include <catch2/catch.hpp>

#ifndef __SANITIZE_THREAD__  // whose library has these operators, for good
namespace {

thread_local std::int64_t aligned_bytes = 0;

}  // namespace

void* operator new(std::size_t bytes, std::align_val_t alignment) {
  aligned_bytes += static_cast<std::int64_t>(bytes);
  const auto unit = static_cast<std::size_t>(alignment);
  void* memory = std::aligned_alloc(unit, (bytes + unit) / unit * unit);
  if (memory == nullptr) {
    std::abort();
  }
  return memory;
}
void operator delete(void* memory, std::align_val_t /*alignment*/) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t /*bytes*/, std::align_val_t /*alignment*/) noexcept {
  std::free(memory);
}
#endif

namespace dsa::scratch_test {

#ifndef __SANITIZE_THREAD__
TEST_CASE("the CPU backend allocates the scratch that it announces", "[kernels][scratch]") {
  const auto threads = GENERATE(1, 3);
  ScratchLimits limits = testing::kTestLimits;
  limits.masked_context_max = GENERATE(0, 1000);
  limits.index_heads = GENERATE(0, 64);
  limits.experts = limits.index_heads == 0 ? 0 : 256;
  CAPTURE(threads, limits.masked_context_max, limits.index_heads);
  CpuBackend backend(threads);
  const std::int64_t before_plan = aligned_bytes;
  const std::int64_t planned = backend.ScratchBytes(limits);
  CHECK(aligned_bytes == before_plan);
  REQUIRE(backend.ReserveScratch(limits).ok());
  CHECK(aligned_bytes - before_plan == planned);
}
#endif

TEST_CASE("attention's scratch is 12 bytes a head of a share, key and thread",
          "[kernels][scratch]") {
  constexpr std::int64_t kHeads = 16;
  CpuBackend backend(2);
  ScratchLimits limits = testing::kTestLimits;
  const std::int64_t before = backend.ScratchBytes(limits);
  limits.context_max += 8000;
  CHECK(backend.ScratchBytes(limits) - before == 2 * kHeads * 8000 * 12);
}

}  // namespace dsa::scratch_test
