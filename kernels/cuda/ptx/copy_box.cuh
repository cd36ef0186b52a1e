// Boxes of a tensor map to shared memory, by the copy engine: their bytes count on a barrier.  The
// map says what a box is; `at` names its first element, the contiguous axis first.
#pragma once

#include <cstdint>

#include <cuda.h>

namespace dsa::cuda::ptx {

// A map is read through a cache of its own, the first time from memory.
__device__ inline void PrefetchMap(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

struct At2 {
  int x, y;
};
struct At3 {
  int x, y, z;
};
struct At4 {
  int x, y, z, u;
};
struct At5 {
  int x, y, z, u, v;
};

__device__ inline void CopyBox(unsigned target, const CUtensorMap& map, unsigned barrier, At2 at) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(at.x), "r"(at.y)
      : "memory");
}
__device__ inline void CopyBox(unsigned target, const CUtensorMap& map, unsigned barrier, At3 at) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(at.x), "r"(at.y), "r"(at.z)
      : "memory");
}
__device__ inline void CopyBox(unsigned target, const CUtensorMap& map, unsigned barrier, At4 at,
                               std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.u), "l"(policy)
      : "memory");
}
__device__ inline void CopyBox(unsigned target, const CUtensorMap& map, unsigned barrier, At3 at,
                               std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(at.x), "r"(at.y), "r"(at.z), "l"(policy)
      : "memory");
}
__device__ inline void CopyBox(unsigned target, const CUtensorMap& map, unsigned barrier, At5 at) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.u), "r"(at.v)
      : "memory");
}
// To the same place of every block of the cluster whose rank is a bit of `blocks`; bytes count on
// the barrier that lies there at the place of `barrier`.
__device__ inline void CopyBoxToBlocks(unsigned target, const CUtensorMap& map, unsigned barrier,
                                       At2 at, unsigned blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(at.x), "r"(at.y), "h"(static_cast<std::uint16_t>(blocks))
      : "memory");
}
__device__ inline void CopyBoxToBlocks(unsigned target, const CUtensorMap& map, unsigned barrier,
                                       At5 at, unsigned blocks) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(target),
      "l"(&map), "r"(barrier), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.u), "r"(at.v),
      "h"(static_cast<std::uint16_t>(blocks))
      : "memory");
}
// Between writes of memory by threads, shared or global, and its reading by the copy engine: by the
// writer before it tells, and by the reader after it was told.
__device__ inline void CopyEngineFence() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

}  // namespace dsa::cuda::ptx
