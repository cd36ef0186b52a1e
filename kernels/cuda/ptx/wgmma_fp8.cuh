// Warpgroup products of e4m3 operands in shared memory, by their names in PTX.
//
//   d [64, kCols] (+)= a [64, 32] . b [kCols, 32]^T      d: kCols / 2 registers of each of 128
//   threads
//
// Both operands are K-major tiles of 128-byte rows with the 128-byte swizzle.  Lane 4 g + q of warp
// w holds in d[4 j + 2 h + i] row 16 w + g + 8 h and column 8 j + 2 q + i.  Within a block of 128
// columns the tensor cores keep about 14 bits of a sum.
#pragma once

#include <cstdint>

namespace dsa::cuda::ptx {

__device__ inline void WgmmaFence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kGroups of the committed groups are under way.
template <int kGroups>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
// Keeps the compiler from moving accesses of registers that a product under way owns.
template <int kRegisters>
__device__ inline void PinRegisters(float (&d)[kRegisters]) {
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) {
    asm volatile("" : "+f"(d[i])::"memory");
  }
}
// Of a tile at a multiple of 1,024 bytes; 2 more for every further 32 columns of K.
__device__ inline std::uint64_t SwizzledTile(unsigned address) {
  constexpr std::uint64_t kLeading = 1;         // unused with this swizzle
  constexpr std::uint64_t kStride = 1024 / 16;  // between groups of 8 rows
  constexpr std::uint64_t kSwizzle128 = 1;
  return ((address & 0x3FFFFU) >> 4) | (kLeading << 16) | (kStride << 32) | (kSwizzle128 << 62);
}

template <int kCols>
struct WgmmaFp8;
template <>
struct WgmmaFp8<8> {
  __device__ static void Run(float (&d)[4], std::uint64_t a, std::uint64_t b, bool add) {
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3"
        "}, %4, %5, add, 1, 1;\n"
        "}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
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
        "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7"
        "}, %8, %9, add, 1, 1;\n"
        "}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7])
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
        "wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, add, 1, 1;\n"
        "}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
          "+f"(d[14]), "+f"(d[15])
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
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, add, 1, 1;\n"
        "}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
          "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
          "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  }
};

}  // namespace dsa::cuda::ptx
