// Warpgroup products of bfloat16 with float32 sums, K = 16, a in registers, b K-major in shared
// memory (SwizzledTile), by their names in PTX.
//
// Of `a` lane 4 g + q of warp w holds two columns each, as mma.m16n8k16 has it: a0 row 16 w + g,
// column 2 q; a1 row + 8; a2 column 2 q + 8; a3 both.
#pragma once

#include "kernels/cuda/ptx/wgmma.cuh"

#include <cstdint>

namespace dsa::cuda::ptx {

template <int kCols>
struct WgmmaBf16Registers;
template <>
struct WgmmaBf16Registers<16> {
  __device__ static void Run(float (&d)[8], const unsigned (&a)[4], std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {" DSA_WGMMA_NAMES_8
        "}, {%8, %9, %10, %11}, %12, add, 1, 1, 0;\n"
        "}\n"
        : DSA_WGMMA_D8(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaBf16Registers<32> {
  __device__ static void Run(float (&d)[16], const unsigned (&a)[4], std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" DSA_WGMMA_NAMES_16
        "}, {%16, %17, %18, %19}, %20, add, 1, 1, 0;\n"
        "}\n"
        : DSA_WGMMA_D16(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
};
template <>
struct WgmmaBf16Registers<64> {
  __device__ static void Run(float (&d)[32], const unsigned (&a)[4], std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" DSA_WGMMA_NAMES_32
        "}, {%32, %33, %34, %35}, %36, add, 1, 1, 0;\n"
        "}\n"
        : DSA_WGMMA_D32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));
  }
};

}  // namespace dsa::cuda::ptx
