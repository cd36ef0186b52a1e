// ProductsAndGate: blocks of a product, one a multiprocessor, with eight warps more that are the
// gate's.
//
//   warps 0-7    few_gate.cuh, which is done before the product is: what it takes, three ways
//                through the L2 cache, a choice and a sort, costs no time of its own
//   warps 8-15   small_product.cuh, of which the last does nothing: registers go from one warpgroup
//                to another
//
// Where multiprocessors are left, blocks without a product choose, ahead of the others, so that
// they have rehearsed by the time that the kernels ahead have ended.
#include "kernels/cuda/few_gate.cuh"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/product_and_gate.h"
#include "kernels/cuda/small_product_launch.cuh"

#include <algorithm>

namespace dsa::cuda {
namespace {

template <int kTokens>
using Plan = small_product::Plan<kTokens, 1, false, 1>;
constexpr int kTokensMin = 17;  // fewer: the experts' launch computes the shared one whole
constexpr int kBothThreads = few_gate::kThreads + Plan<64>::kBesideThreads;
// Of shared memory, beside the product's: the gate's, and what its sort has of its own.
constexpr int kGateSharedBytes = static_cast<int>(sizeof(few_gate::BlockShared)) + 4096;
static_assert(kBothThreads == few_gate::kApartWarps * kWarpSize);
static_assert(few_gate::kWarps % 4 == 0, "a warpgroup begins behind the gate's warps");
static_assert(small_product::kTokensMax == few_gate::kTokensMax);
constexpr int kWarpgroup = 128;
constexpr int kGateRegisters = 136;
static_assert(kBothThreads == few_gate::kThreads + 2 * kWarpgroup);
static_assert(few_gate::kThreads * kGateRegisters +
                  kWarpgroup * (small_product::kBesideConsumerRegisters +
                                small_product::kBesideLoaderRegisters) ==
              1 << 16);

template <int kTokens>
__global__ void __launch_bounds__(kBothThreads, 1)
    ProductsAndGateKernel(const __grid_constant__ small_product::Maps maps,
                          const __grid_constant__ small_product::SmallProductParams p,
                          const __grid_constant__ few_gate::FewGateParams gate) {
  extern __shared__ __align__(16) std::uint8_t dynamic[];
  __shared__ few_gate::BlockShared shared;
  ptx::AllowSuccessor();
  if (static_cast<int>(blockIdx.x) < p.first_block) {
    few_gate::ChooseApart(gate, shared);
    return;
  }
  if (static_cast<int>(threadIdx.x) >= few_gate::kThreads) {
    small_product::Run<Plan<kTokens>, few_gate::kWarps>(maps, p, dynamic);
    return;
  }
  ptx::RaiseRegisters<kGateRegisters>();
  if (p.split > 1) {
    ptx::ClusterArrive();  // as the product's threads do
  }
  if (static_cast<int>(blockIdx.x) < gate.Blocks()) {
    few_gate::Run<kTokens / few_gate::kTileTokens, few_gate::kGroupTiles>(gate, shared);
  }
}

template <int kTokens>
void Launch(std::span<const BlockScaledLinearParams> products, const FewGateCall& gate,
            cudaStream_t stream) {
  small_product::Launch launch =
      small_product::MakeLaunch<Plan<kTokens>>(products, nullptr, kGateSharedBytes);
  const auto kernel = ProductsAndGateKernel<kTokens>;
  few_gate::FewGateParams gate_params(gate);
  const int split = launch.params.split;
  const int wanted = (few_gate::ApartChoosers(gate.gate) + split - 1) / split * split;
  const int apart = launch.blocks + wanted <= small_product::MultiprocessorsFor(split) ? wanted : 0;
  launch.params.first_block = apart;
  gate_params.SpreadOver(launch.blocks, apart);
  static PerDevice attribute;
  attribute.Once([&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kBlockSharedBytesMax - kGateSharedBytes);
  });
  LaunchDependent(kernel,
                  {.grid = static_cast<unsigned>(apart + launch.blocks),
                   .threads = kBothThreads,
                   .shared_bytes = launch.shared_bytes,
                   .cluster = static_cast<unsigned>(launch.params.split)},
                  stream, launch.maps, launch.params, gate_params);
}

}  // namespace

bool ProductsAndGateTake(std::span<const BlockScaledLinearParams> products,
                         const GateParams& gate) {
  if (!FewGateTakes(gate) || gate.x.rows < kTokensMin ||
      !std::all_of(products.begin(), products.end(), SmallProductTakes)) {
    return false;
  }
  const small_product::Grid grid(products, Plan<64>::kTileRows, Plan<64>::kResidents);
  return grid.blocks() >= FewGateBlocks(gate) &&
         grid.blocks() <= small_product::MultiprocessorsFor(grid.split);
}

void ProductsAndGate(std::span<const BlockScaledLinearParams> products, const FewGateCall& gate,
                     cudaStream_t stream) {
  gate.gate.x.rows <= 32 ? Launch<32>(products, gate, stream) : Launch<64>(products, gate, stream);
}

}  // namespace dsa::cuda
