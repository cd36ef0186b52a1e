// Launches that overlap the ones before them (programmatic dependent launch).
//
// Between two ordinary launches a stream stands still for one to two microseconds: the second is
// sent when the first has ended, in a graph too.  A kernel launched by LaunchDependent is sent when
// every block of the kernel before it has called ptx::AllowSuccessor (or ended), gets ready beside
// it, and waits in ptx::WaitForPredecessors until that one has ended.
//
// The rule, which nothing but care enforces:
//
//   1. Every kernel launched by LaunchDependent calls WaitForPredecessors, in every block.
//   2. Before that call it touches nothing that any kernel of a step reads or writes.  Its
//      parameters, weights with their scales, tensor maps of weights and RoPE tables are written by
//      no kernel: those it may read, which is what the time before the call is for.
//      One kernel reads more: rows of which the kernel ahead of it says, by a word with release
//      semantics, that those ahead of that one have ended (AnnounceRows in pair_sort.cuh), and what
//      that one has written when it says so (PreparePairs); it then writes, too, what that one does
//      not touch any more.  And IndexScores knows that of all of its blocks, since the kernel ahead
//      of it, which prepares queries, allows it behind its own wait: it touches what that kernel
//      does not.
//   3. AllowSuccessor may be called anywhere: it promises nothing about memory.  At best first, but
//      where the next kernel's reads would take bandwidth from this one's (small_product.cuh).
//
// Why it is enough: a kernel ends after its own wait, so after everything before it.  Whoever waits
// for its end has therefore waited for all earlier launches, however many had started; nobody
// overwrites what an earlier kernel still reads.  A kernel that broke 1 could end while an earlier
// one still runs, and its successor would not notice.  For the same reason a kernel launched
// without LaunchDependent, one of a library, a copy or a memset may stand anywhere in the chain: it
// starts after everything before it, and its end is what its successor waits for.
//
// Holds under stream capture: the edge of the graph is a programmatic one.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/dependency.cuh"

#include <cstdint>
#include <type_traits>

#include <cuda_runtime.h>

namespace dsa::cuda {

struct LaunchShape {
  dim3 grid;
  unsigned threads;
  std::int64_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks, along x
};

template <typename... Params>
void LaunchDependent(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                     std::type_identity_t<Params>... params) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {shape.cluster, 1, 1};
  }
  DSA_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, params...));
}

// The start of a kernel that has nothing to do before its operands are there.
__device__ inline void StartAfterPredecessors() {
  ptx::AllowSuccessor();
  ptx::WaitForPredecessors();
}

}  // namespace dsa::cuda
