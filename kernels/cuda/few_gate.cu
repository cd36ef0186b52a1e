// The gate of a decode step in a launch of its own (few_gate.cuh).
#include "kernels/cuda/few_gate.cuh"

#include <algorithm>

namespace dsa::cuda {
namespace {

template <int kTiles>
__global__ __launch_bounds__(few_gate::kThreads, 1) void FewGateKernel(
    const __grid_constant__ few_gate::FewGateParams p) {
  __shared__ few_gate::BlockShared shared;
  ptx::AllowSuccessor();
  few_gate::Run<kTiles>(p, shared);
}

}  // namespace

bool FewGateTakes(const GateParams& params) {
  return params.x.type == DataType::kBf16 && params.weight.type == DataType::kBf16 &&
         params.x.rows > 0 && params.x.rows <= few_gate::kTokensMax &&
         params.x.cols % few_gate::kPackColumns == 0 && params.weight.rows <= kFewGateExperts &&
         HasAlignedRows(params.x) && HasAlignedRows(params.weight) &&
         few_gate::Parts(params) <= kMultiprocessors;
}

int FewGateBlocks(const GateParams& params) {
  return std::max(few_gate::Parts(params), few_gate::Choosers(params));
}

float* TakeFewGateLogits(ScratchArena& arena, const GateParams& params) {
  return arena.Take<float>(GateSlices(params.x.cols) * params.x.rows *
                           GateLogitStride(params.weight.rows));
}

void FewGate(const FewGateCall& call, cudaStream_t stream) {
  const few_gate::FewGateParams params(call);
  const LaunchShape shape = {.grid = static_cast<unsigned>(FewGateBlocks(call.gate)),
                             .threads = few_gate::kThreads};
  constexpr int kAllTiles = few_gate::kTokensMax / few_gate::kTileTokens;
  call.gate.x.rows <= few_gate::kTileTokens
      ? LaunchDependent(FewGateKernel<1>, shape, stream, params)
      : LaunchDependent(FewGateKernel<kAllTiles>, shape, stream, params);
}

}  // namespace dsa::cuda
