// What a block does in the shared memory of another block of its cluster, by the names in PTX.
// Addresses and barriers are those of AddressInBlock.  A block must not end before its peers have
// done what they do to it.
#pragma once

#include "kernels/cuda/ptx/shared_memory.cuh"

namespace dsa::cuda::ptx {

// The bytes count on `barrier`, a barrier of the same block; whoever has waited for it sees them.
__device__ inline void StoreWords4InBlock(unsigned target, uint4 words, unsigned barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(target),
      "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w), "r"(barrier)
      : "memory");
}
__device__ inline void StoreWordInBlock(unsigned target, unsigned word, unsigned barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(target),
      "r"(word), "r"(barrier)
      : "memory");
}
// From this block's shared memory, in one piece; ordered behind its writes by an AsyncProxyFence.
__device__ inline void CopyBulkToBlock(unsigned target, unsigned source, unsigned bytes,
                                       unsigned barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(target),
      "r"(source), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ inline void BarrierArriveInBlock(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

}  // namespace dsa::cuda::ptx
