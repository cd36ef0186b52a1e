// What warpgroup products of all operand types share, by their names in PTX.
//
//   d [64, kCols] (+)= a [64, K] . b [kCols, K]^T      d: kCols / 2 registers of each of 128
//   threads
//
// Lane 4 g + q of warp w holds in d[4 j + 2 h + i] row 16 w + g + 8 h and column 8 j + 2 q + i.
//
// Tiles of the operands in shared memory, at multiples of 1,024 bytes but for PlainTile:
//   SwizzledTile     K-major: rows of 128 bytes in the 128-byte swizzle; 2 more for every further
//   32
//                    bytes of K
//   SwizzledColumns  MN-major: a row of 64 values for every index of K, 128 bytes, in the 128-byte
//                    swizzle; 128 more for every further 16 of K.  Further 64 columns lie in tiles
//                    `stride` bytes apart.
//   NarrowTile       K-major: rows of 64 bytes in the 64-byte swizzle; 2 more for every further 32
//                    bytes of K
//   PlainTile        K of 32 bytes without swizzle: pieces of 8 rows x 16 bytes, `k_bytes` from one
//   to
//                    the next along K and `row_bytes` along the rows
#pragma once

#include <cstdint>

// The registers of d as operands of an asm statement, which takes no other list, and their names in
// its text.
#define DSA_WGMMA_D4(d, i) "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define DSA_WGMMA_D8(d, i) DSA_WGMMA_D4(d, i), DSA_WGMMA_D4(d, (i) + 4)
#define DSA_WGMMA_D16(d, i) DSA_WGMMA_D8(d, i), DSA_WGMMA_D8(d, (i) + 8)
#define DSA_WGMMA_D32(d, i) DSA_WGMMA_D16(d, i), DSA_WGMMA_D16(d, (i) + 16)
#define DSA_WGMMA_D64(d, i) DSA_WGMMA_D32(d, i), DSA_WGMMA_D32(d, (i) + 32)
#define DSA_WGMMA_D128(d, i) DSA_WGMMA_D64(d, i), DSA_WGMMA_D64(d, (i) + 64)
#define DSA_WGMMA_NAMES_4 "%0, %1, %2, %3"
#define DSA_WGMMA_NAMES_8 DSA_WGMMA_NAMES_4 ", %4, %5, %6, %7"
#define DSA_WGMMA_NAMES_16 DSA_WGMMA_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define DSA_WGMMA_NAMES_32 \
  DSA_WGMMA_NAMES_16       \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DSA_WGMMA_NAMES_64                                                             \
  DSA_WGMMA_NAMES_32                                                                   \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DSA_WGMMA_NAMES_128                                                                      \
  DSA_WGMMA_NAMES_64                                                                             \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, " \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "   \
  "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, "   \
  "%115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

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

__device__ inline std::uint64_t SwizzledTile(unsigned address) {
  constexpr std::uint64_t kLeading = 1;         // unused with this swizzle
  constexpr std::uint64_t kStride = 1024 / 16;  // between groups of 8 rows
  constexpr std::uint64_t kSwizzle128 = 1;
  return ((address & 0x3FFFFU) >> 4) | (kLeading << 16) | (kStride << 32) | (kSwizzle128 << 62);
}
__device__ inline std::uint64_t SwizzledColumns(unsigned address, unsigned stride) {
  constexpr std::uint64_t kStride = 1024 / 16;  // between groups of 8 of K
  constexpr std::uint64_t kSwizzle128 = 1;
  return ((address & 0x3FFFFU) >> 4) | (std::uint64_t{stride / 16} << 16) | (kStride << 32) |
         (kSwizzle128 << 62);
}
__device__ inline std::uint64_t NarrowTile(unsigned address) {
  constexpr std::uint64_t kStride = 512 / 16;  // between groups of 8 rows
  constexpr std::uint64_t kSwizzle64 = 2;
  return ((address & 0x3FFFFU) >> 4) | (kStride << 32) | (kSwizzle64 << 62);
}
__device__ inline std::uint64_t PlainTile(unsigned address, unsigned k_bytes, unsigned row_bytes) {
  return std::uint64_t{(address & 0x3FFFFU) >> 4} | std::uint64_t{k_bytes >> 4} << 16 |
         std::uint64_t{row_bytes >> 4} << 32;
}

}  // namespace dsa::cuda::ptx
