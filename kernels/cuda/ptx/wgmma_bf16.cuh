// Warpgroup products of bfloat16 with float32 sums, K = 16, by their names in PTX; of 128 columns
// where a name does not say otherwise.
#pragma once

#include "kernels/cuda/ptx/wgmma.cuh"

#include <cstdint>

namespace dsa::cuda::ptx {

// Both K-major.
__device__ inline void WgmmaBf16(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" DSA_WGMMA_NAMES_64
      "}, %64, %65, add, 1, 1, 0, 0;\n"
      "}\n"
      : DSA_WGMMA_D64(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// The same of 256 columns: a is read once for all of them.
__device__ inline void WgmmaBf16(float (&d)[128], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" DSA_WGMMA_NAMES_128
      "}, %128, %129, add, 1, 1, 0, 0;\n"
      "}\n"
      : DSA_WGMMA_D128(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// `a` in registers, as mma.m16n8k16 has it, warp w with rows 16 w to 16 w + 15; b in columns.
__device__ inline void WgmmaBf16Columns(float (&d)[64], unsigned a0, unsigned a1, unsigned a2,
                                        unsigned a3, std::uint64_t b) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.eq.b32 add, 0, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" DSA_WGMMA_NAMES_64
      "}, {%64, %65, %66, %67}, %68, add, 1, 1, 1;\n"
      "}\n"
      : DSA_WGMMA_D64(d, 0)
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b));
}

// Both in shared memory, 64 columns: `a` K-major, b in columns.
__device__ inline void WgmmaBf16Columns64(float (&d)[32], std::uint64_t a, std::uint64_t b,
                                          bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" DSA_WGMMA_NAMES_32
      "}, %32, %33, add, 1, 1, 0, 1;\n"
      "}\n"
      : DSA_WGMMA_D32(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

}  // namespace dsa::cuda::ptx
