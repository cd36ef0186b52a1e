// Launches that overlap the ones before them, on the stream and in a graph: who waits sees what all
// launches before it wrote, not only the last; who does not wait has started too early, so the
// overlap is real and rule 1 of dependent_launch.cuh is needed.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "tests/kernels/test_backend.h"

#include <functional>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::DeviceArray;

constexpr unsigned kThreads = 64;
constexpr unsigned kBlocks = 8;  // all resident at once, with room for their successors
constexpr std::int64_t kValues = std::int64_t{kThreads} * kBlocks;
constexpr long long kSlowClocks = 100'000;  // about 60 us

// to[i] = from[i] + 1, late.  A block that does not wait reads before it is slow.
template <bool kWaits>
__global__ void SlowStepKernel(const int* from, int* to) {
  cuda::ptx::AllowSuccessor();
  if (kWaits) {
    cuda::ptx::WaitForPredecessors();
  }
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  const int value = __ldcg(from + i);
  const long long start = clock64();
  while (clock64() - start < kSlowClocks) {
  }
  to[i] = value + 1;
}
__global__ void StepKernel(const int* from, int* to) {
  cuda::StartAfterPredecessors();
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  to[i] = __ldcg(from + i) + 1;
}

// What a chain of 2 slow steps and 2 quick ones leaves; each writes a buffer of its own but the
// last, which overwrites the first one's.
template <bool kWaits>
std::vector<int> RunChain(bool is_graph) {
  auto& backend = dynamic_cast<CudaBackend&>(testing::TestBackend());
  const cudaStream_t stream = backend.stream();
  const DeviceArray<int> a(backend, std::vector<int>(kValues, 0));
  const DeviceArray<int> b(backend, std::vector<int>(kValues, 100));
  const DeviceArray<int> c(backend, std::vector<int>(kValues, 100));
  const DeviceArray<int> d(backend, std::vector<int>(kValues, 100));
  const cuda::LaunchShape shape{.grid = kBlocks, .threads = kThreads};
  const std::function<void()> chain = [&] {
    cuda::LaunchDependent(SlowStepKernel<kWaits>, shape, stream, static_cast<const int*>(a.data()),
                          b.data());
    cuda::LaunchDependent(SlowStepKernel<kWaits>, shape, stream, static_cast<const int*>(b.data()),
                          c.data());
    cuda::LaunchDependent(StepKernel, shape, stream, static_cast<const int*>(c.data()), d.data());
    cuda::LaunchDependent(StepKernel, shape, stream, static_cast<const int*>(d.data()), a.data());
  };
  if (is_graph) {
    constexpr GraphId kGraph{900};
    backend.Record(kGraph, chain);
    backend.Replay(kGraph);
  } else {
    chain();
  }
  return a.Download();
}

}  // namespace

TEST_CASE("a launch that waits sees everything before it", "[kernels][dependent_launch]") {
  const bool is_graph = GENERATE(false, true);
  CAPTURE(is_graph);
  for (int turn = 0; turn < 5; ++turn) {
    CHECK(RunChain<true>(is_graph) == std::vector<int>(kValues, 4));
  }
}

TEST_CASE("a launch that does not wait starts too early", "[kernels][dependent_launch]") {
  const bool is_graph = GENERATE(false, true);
  CAPTURE(is_graph);
  CHECK(RunChain<false>(is_graph) != std::vector<int>(kValues, 4));
}

}  // namespace dsa
