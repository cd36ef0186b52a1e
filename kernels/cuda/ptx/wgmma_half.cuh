// Warpgroup products of halves with float32 sums, K = 16, by their names in PTX.
//
// Of `a` in registers lane 4 g + q of warp w holds two columns each, as mma.m16n8k16 has it: a0 row
// 16 w + g, column 2 q; a1 row + 8; a2 column 2 q + 8; a3 both.
#pragma once

#include "kernels/cuda/ptx/wgmma.cuh"

#include <cstdint>

namespace dsa::cuda::ptx {

// a in registers, b K-major.
template <int kCols>
struct WgmmaHalf;
template <>
struct WgmmaHalf<16> {
  __device__ static void Run(float (&d)[8], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                             std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {" DSA_WGMMA_NAMES_8
        "}, {%8, %9, %10, %11}, %12, add, 1, 1, 0;\n"
        "}\n"
        : DSA_WGMMA_D8(d, 0)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaHalf<32> {
  __device__ static void Run(float (&d)[16], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                             std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" DSA_WGMMA_NAMES_16
        "}, {%16, %17, %18, %19}, %20, add, 1, 1, 0;\n"
        "}\n"
        : DSA_WGMMA_D16(d, 0)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaHalf<64> {
  __device__ static void Run(float (&d)[32], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                             std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" DSA_WGMMA_NAMES_32
        "}, {%32, %33, %34, %35}, %36, add, 1, 1, 0;\n"
        "}\n"
        : DSA_WGMMA_D32(d, 0)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(static_cast<int>(add)));
  }
};

template <>
struct WgmmaHalf<128> {
  __device__ static void Run(float (&d)[64], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                             std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" DSA_WGMMA_NAMES_64
        "}, {%64, %65, %66, %67}, %68, add, 1, 1, 0;\n"
        "}\n"
        : DSA_WGMMA_D64(d, 0)
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(static_cast<int>(add)));
  }
};

// Both in shared memory, K-major.
__device__ inline void WgmmaHalf64(float (&d)[32], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" DSA_WGMMA_NAMES_32
      "}, %32, %33, add, 1, 1, 0, 0;\n"
      "}\n"
      : DSA_WGMMA_D32(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// a K-major, b MN-major.
__device__ inline void WgmmaHalf128(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" DSA_WGMMA_NAMES_64
      "}, %64, %65, add, 1, 1, 0, 1;\n"
      "}\n"
      : DSA_WGMMA_D64(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

// Both in shared memory, K-major.
__device__ inline void WgmmaHalf16(float (&d)[8], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %10, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {" DSA_WGMMA_NAMES_8
      "}, %8, %9, add, 1, 1, 0, 0;\n"
      "}\n"
      : DSA_WGMMA_D8(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
// a MN-major, b K-major.
__device__ inline void WgmmaHalf16Turned(float (&d)[8], std::uint64_t a, std::uint64_t b,
                                         bool add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %10, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {" DSA_WGMMA_NAMES_8
      "}, %8, %9, add, 1, 1, 1, 0;\n"
      "}\n"
      : DSA_WGMMA_D8(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

}  // namespace dsa::cuda::ptx
