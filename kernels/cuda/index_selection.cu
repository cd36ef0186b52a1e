// IndexSelection: which blocks select, index_selection.cuh has what they do.
#include "kernels/cuda/index_selection.cuh"

#include <algorithm>

namespace dsa::cuda {
namespace index_selection {
namespace {

template <typename Size>
__global__ __launch_bounds__(Size::kThreads, Size::kBlocks) void IndexSelectionKernel(
    const __grid_constant__ KernelParams p) {
  extern __shared__ __align__(16) std::uint8_t memory[];
  Selection<Size>(p, *reinterpret_cast<Shared<Size>*>(memory)).Run(p);
}

template <typename Size>
void Launch(const KernelParams& p, cudaStream_t stream) {
  const auto kernel = IndexSelectionKernel<Size>;
  AllowClusters<IndexSelectionKernel<Size>>();
  const auto cluster = static_cast<unsigned>(p.cluster);
  LaunchDependent(kernel,
                  {.grid = static_cast<unsigned>(p.call.scores.rows) * cluster,
                   .threads = Size::kThreads,
                   .shared_bytes = SharedBytes<Size>(p),
                   .cluster = cluster},
                  stream, p);
}

KernelParams ParamsOf(const SelectTopKParams& params, const std::int32_t* work, int cluster) {
  DSA_CHECK(params.k <= kIndexSelectionMax, "IndexSelection: K={}, at most {}", params.k,
            kIndexSelectionMax);
  const std::int64_t part = (VisibleMax(params) + cluster - 1) / cluster;
  DSA_CHECK(part <= kPartMax, "IndexSelection: rows of {} keys in {} blocks, at most {} each",
            VisibleMax(params), cluster, kPartMax);
  return {.call = params,
          .work = work,
          .cluster = cluster,
          .words = static_cast<int>((part + kGroupKeys - 1) / kGroupKeys * kGroup)};
}

}  // namespace
}  // namespace index_selection

int IndexSelectionCluster(std::int64_t rows, std::int64_t visible_max) {
  int cluster = visible_max > 65536 ? 16 : (visible_max > 8192 ? 8 : 1);
  while (cluster > 1 && rows * cluster > kMultiprocessors &&
         visible_max <= index_selection::kPartMax * cluster / 2) {
    cluster /= 2;
  }
  return cluster;
}

void IndexSelection(const SelectTopKParams& params, const std::int32_t* work, int cluster,
                    cudaStream_t stream) {
  using namespace index_selection;
  const KernelParams p = ParamsOf(params, work, cluster);
  const std::int64_t blocks = params.scores.rows * cluster;
  if (cluster == 1 && blocks > 2 * kMultiprocessors && VisibleMax(params) <= kShortRowMax) {
    Launch<Narrow>(p, stream);
  } else if ((cluster > 2 || blocks > kMultiprocessors) && Fits<Paired>(p)) {
    Launch<Paired>(p, stream);
  } else {
    Launch<Wide>(p, stream);
  }
}

bool LeavesRoomToAbsorb(std::int64_t rows, int cluster, const RotateAndAbsorbParams& queries) {
  return index_selection::AbsorbBlocks(queries) <=
         (kMultiprocessors - rows * cluster) / cluster * cluster;
}

void IndexSelectionAndAbsorb(const SelectTopKParams& params, const std::int32_t* work, int cluster,
                             const RotateAndAbsorbParams& queries, cudaStream_t stream) {
  using namespace index_selection;
  DSA_CHECK(LeavesRoomToAbsorb(params.scores.rows, cluster, queries),
            "IndexSelectionAndAbsorb: no room beside {} rows", params.scores.rows);
  const std::int64_t blocks = (AbsorbBlocks(queries) + cluster - 1) / cluster * cluster;
  LaunchBeside(ParamsOf(params, work, cluster), queries, static_cast<int>(blocks), stream);
}

}  // namespace dsa::cuda
