// Blocks of one launch that share a piece of work and meet once.
#pragma once

#include <cuda_runtime_api.h>

namespace dsa::cuda {

// Waits until all `count` siblings are here; what their threads wrote before they called, they see
// afterwards.  One thread of a block, behind a barrier of the block and before another.  All
// siblings must run at once.  `counters`: two words, zero before and, once all have left, again.
__device__ inline void MeetSiblings(unsigned* counters, int count) {
  const auto all = static_cast<unsigned>(count);
  __threadfence();
  atomicAdd(counters, 1U);
  unsigned here = 0;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(here) : "l"(counters) : "memory");
  } while (here < all);
  if (atomicInc(counters + 1, all - 1) == all - 1) {  // the last to leave; the word wraps to 0
    *counters = 0;
  }
}

}  // namespace dsa::cuda
