// WgmmaFp8 of 128 columns: products whose operands both have many rows (wgmma_fp8.cuh has the
// others).
#pragma once

#include "kernels/cuda/ptx/wgmma_fp8.cuh"

namespace dsa::cuda::ptx {

template <>
struct WgmmaFp8<128> {
  __device__ static void Run(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" DSA_WGMMA_NAMES_64
        "}, %64, %65, add, 1, 1;\n"
        "}\n"
        : DSA_WGMMA_D64(d, 0)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  }
};

}  // namespace dsa::cuda::ptx
