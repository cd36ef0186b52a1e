// Warpgroup products of e4m3 operands in shared memory, K = 32, both K-major (SwizzledTile), by
// their names in PTX.  Within a block of 128 columns the tensor cores keep about 14 bits of a sum.
#pragma once

#include "kernels/cuda/ptx/wgmma.cuh"

#include <cstdint>

namespace dsa::cuda::ptx {

template <int kCols>
struct WgmmaFp8;
template <>
struct WgmmaFp8<8> {
  __device__ static void Run(float (&d)[4], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_4
        "}, %4, %5, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D4(d, 0)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaFp8<16> {
  __device__ static void Run(float (&d)[8], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_8
        "}, %8, %9, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D8(d, 0)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaFp8<32> {
  __device__ static void Run(float (&d)[16], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_16
        "}, %16, %17, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D16(d, 0)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaFp8<64> {
  __device__ static void Run(float (&d)[32], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_32
        "}, %32, %33, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D32(d, 0)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  }
};

}  // namespace dsa::cuda::ptx
