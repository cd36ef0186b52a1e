// Blocks of one launch that share a piece of work and meet once.
//
// `counters`: two words, zero before the launch and, once all siblings have left, again.  One
// thread of a block calls both.
#pragma once

#include <cuda_runtime_api.h>

namespace dsa::cuda {

// Waits until all `count` siblings are here; what their threads wrote before they called, they see
// afterwards.  Behind a barrier of the block and before another.  All siblings must run at once.
__device__ inline void MeetSiblings(unsigned* counters, int count) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counters) : "memory");
  unsigned here = 0;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(here) : "l"(counters) : "memory");
  } while (here < static_cast<unsigned>(count));
}

// At the end of the block, since it waits for an answer of the memory.
__device__ inline void LeaveSiblings(unsigned* counters, int count) {
  const unsigned last = static_cast<unsigned>(count) - 1;
  if (atomicInc(counters + 1, last) == last) {  // the word wraps to 0
    *counters = 0;
  }
}

}  // namespace dsa::cuda
