// Warpgroup products of e4m3 operands, K = 32, a in registers, b in shared memory and K-major
// (SwizzledTile), by their names in PTX.  As in wgmma_fp8.cuh the tensor cores keep about 14 bits.
//
// Of `a` lane 4 g + q of warp w holds four columns each: a0 row 16 w + g, columns 4 q .. 4 q + 3;
// a1 row + 8; a2 columns + 16; a3 both.
#pragma once

#include "kernels/cuda/ptx/wgmma.cuh"

#include <cstdint>

namespace dsa::cuda::ptx {

template <int kCols>
struct WgmmaFp8Registers;
template <>
struct WgmmaFp8Registers<8> {
  __device__ static void Run(float (&d)[4], const unsigned (&a)[4], std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_4
        "}, {%4, %5, %6, %7}, %8, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D4(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaFp8Registers<16> {
  __device__ static void Run(float (&d)[8], const unsigned (&a)[4], std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_8
        "}, {%8, %9, %10, %11}, %12, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D8(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaFp8Registers<32> {
  __device__ static void Run(float (&d)[16], const unsigned (&a)[4], std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_16
        "}, {%16, %17, %18, %19}, %20, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D16(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaFp8Registers<64> {
  __device__ static void Run(float (&d)[32], const unsigned (&a)[4], std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_32
        "}, {%32, %33, %34, %35}, %36, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaFp8Registers<128> {
  __device__ static void Run(float (&d)[64], const unsigned (&a)[4], std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_64
        "}, {%64, %65, %66, %67}, %68, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D64(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
};

}  // namespace dsa::cuda::ptx
