// What a kernel of a collective does at the mailboxes.
#pragma once

#include "kernels/cuda/peers.h"

#include <cstdint>

#include <cuda_runtime.h>

namespace dsa::cuda {
namespace ptx {

// Everything that this thread has seen written, its block's included where they met before, is
// visible to whoever loads the value by LoadAcquire, on any device.
__device__ inline void StoreRelease(std::uint64_t* to, std::uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline void StoreRelease(unsigned* to, unsigned value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
// Without order; seen by all devices.
__device__ inline void StoreRelaxed(std::uint64_t* to, std::uint64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ inline std::uint64_t LoadRelaxed(const std::uint64_t* from) {
  std::uint64_t value;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline unsigned LoadRelaxed(const unsigned* from) {
  unsigned value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline std::uint64_t LoadAcquire(const std::uint64_t* from) {
  std::uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline unsigned LoadAcquire(const unsigned* from) {
  unsigned value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Two values and their numbers; each half of 8 bytes comes whole.
__device__ inline void StoreLine(uint4* to, uint4 line) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(line.x),
               "r"(line.y), "r"(line.z), "r"(line.w)
               : "memory");
}
__device__ inline uint4 LoadLine(const uint4* from) {
  uint4 line;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(line.x), "=r"(line.y), "=r"(line.z), "=r"(line.w)
               : "l"(from)
               : "memory");
  return line;
}

}  // namespace ptx

// Until done() is true, or the group has failed: then false.
template <typename Done>
__device__ bool WaitFor(const PeerTable& peers, const Done& done) {
  constexpr int kLooksBetween = 4096;  // the word of a failure is across PCIe
  while (true) {
    for (int look = 0; look < kLooksBetween; ++look) {
      if (done()) {
        return true;
      }
    }
    if (ptx::LoadRelaxed(peers.aborted) != 0) {
      return false;
    }
  }
}

// A block's meeting with the same block of all ranks.  `operands` and `count` live in shared
// memory: of each rank what it said.
struct Meeting {
  std::uint64_t operands[kPeersMax][2];
  bool failed;
};

// By all threads, more than there are ranks; behind WaitForPredecessors.  Returns the meeting's
// number.  What ranks have written before is visible to all afterwards.
__device__ inline unsigned Meet(const PeerTable& peers, Meeting& meeting, std::uint64_t first,
                                std::uint64_t second) {
  constexpr int kNumberBits = 16;
  const auto block = blockIdx.x;
  Mailbox& own = *peers.boxes[peers.rank];
  const unsigned number = own.meetings[block] + 1;
  const auto mark = static_cast<std::uint64_t>(number & 0xFFFFU);
  const int other = static_cast<int>(threadIdx.x);
  if (other == 0) {
    meeting.failed = false;
  }
  __syncthreads();
  if (other == peers.rank) {
    meeting.operands[other][0] = first;
    meeting.operands[other][1] = second;
  } else if (other < peers.ranks) {
    std::uint64_t* const words = peers.boxes[other]->operands[block][peers.rank];
    ptx::StoreRelaxed(words, first);
    ptx::StoreRelease(words + 1, second << kNumberBits | mark);
    std::uint64_t word = 0;
    const bool came = WaitFor(peers, [&] {
      word = ptx::LoadAcquire(&own.operands[block][other][1]);
      return (word & 0xFFFFU) == mark;
    });
    meeting.operands[other][0] = ptx::LoadRelaxed(&own.operands[block][other][0]);
    meeting.operands[other][1] = word >> kNumberBits;
    if (!came) {
      meeting.failed = true;
    }
  }
  __syncthreads();
  return number;
}

// By all threads.  Returns once the same block of all ranks has come here; what they wrote to this
// device is there for what follows the kernel.
__device__ inline void Part(const PeerTable& peers, unsigned number) {
  const auto block = blockIdx.x;
  Mailbox& own = *peers.boxes[peers.rank];
  const int other = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (other == peers.rank) {
    own.meetings[block] = number;
  } else if (other < peers.ranks) {
    ptx::StoreRelease(&peers.boxes[other]->finished[block][peers.rank], number);
    (void)WaitFor(peers, [&] { return ptx::LoadAcquire(&own.finished[block][other]) == number; });
  }
}

}  // namespace dsa::cuda
