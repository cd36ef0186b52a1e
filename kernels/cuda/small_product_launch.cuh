// Launches of small_product.cuh: how K is split, how many blocks there are and what they hold.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/small_product.cuh"
#include "kernels/cuda/weight_map.h"

#include <algorithm>
#include <span>

namespace dsa::cuda::small_product {

inline constexpr int kWideTokens = 33;  // from so many rows on tiles may be wide
// Up to here K is short: one warpgroup of a multiprocessor takes as long for such tiles as the
// memory does, so two blocks share one; longer ones would leave the last wave uneven.
inline constexpr int kShortColumns = 2048;

// How many parts K is cut into: as many blocks as draw the whole bandwidth, of the weights' shapes
// alone.  From 100 tiles on one block each does (a multiprocessor takes 40 KB a microsecond, its
// share is 23), except where one long tile each leaves the last wave uneven.
inline int SplitOf(int tiles, std::int64_t inputs) {
  if (tiles >= 100) {
    return tiles <= kMultiprocessors && inputs >= 8192 ? 2 : 1;
  }
  return tiles >= 50 ? 2 : (tiles >= 16 ? 4 : 8);
}

// How many multiprocessors clusters of this size can fill at one block each: a cluster stays in one
// group of 16 or 18 of them.  One more would start in a second wave.
inline int MultiprocessorsFor(int split) {
  constexpr int kInWholeClusters = 104;
  return split >= 4 ? kInWholeClusters : kMultiprocessors;
}

inline int TilesOf(const BlockScaledLinearParams& product, int rows = kSlabRows) {
  return (static_cast<int>(product.weight.rows) + rows - 1) / rows;
}
// Whether tiles are wide: from 33 rows on, where K is split and as many blocks as there are then
// have enough to do.  Many tiles of a short K are as fast in two blocks a multiprocessor.
inline bool IsWide(std::span<const BlockScaledLinearParams> products) {
  constexpr int kBlocksMin = 100;
  int tiles = 0;
  int wide = 0;
  for (const BlockScaledLinearParams& product : products) {
    tiles += TilesOf(product);
    wide += TilesOf(product, 2 * kSlabRows);
  }
  const int split = SplitOf(tiles, products.front().x.cols);
  const int blocks = wide * split;
  return products.front().x.rows >= kWideTokens && split > 1 && blocks >= kBlocksMin &&
         blocks <= MultiprocessorsFor(split);
}
struct Grid {
  int tiles = 0;
  int split;
  int clusters;
  // `is_alone`: one block a multiprocessor at most.
  Grid(std::span<const BlockScaledLinearParams> products, bool is_alone, int slabs = 1) {
    int slab_tiles = 0;
    for (const BlockScaledLinearParams& product : products) {
      slab_tiles += TilesOf(product);
      tiles += TilesOf(product, slabs * kSlabRows);
    }
    split = SplitOf(slab_tiles, products.front().x.cols);
    const Matrix<const Fp8E4m3>& x = products.front().x;
    const int per_multiprocessor = !is_alone && slabs == 1 && x.cols <= kShortColumns ? 2 : 1;
    clusters = split > 1 ? tiles : std::min(tiles, per_multiprocessor * kMultiprocessors);
  }
  int blocks() const { return clusters * split; }
};

// A launch of P::kThreads threads a block, or with others beside them.
struct Launch {
  Maps maps;
  SmallProductParams params;
  int blocks;
  int shared_bytes;
};

// What a launch does beside the products: the shared memory of a block that it takes, and whether
// it leaves room for one block a multiprocessor alone.
struct Beside {
  int shared_bytes = 0;
  bool is_alone = false;
};

template <typename P>
Launch MakeLaunch(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
                  const Beside& beside) {
  const BlockScaledLinearParams& first = products.front();
  const int blocks = static_cast<int>(Fp8Blocks(first.x.cols));
  Maps maps{};
  if constexpr (P::kMapsInput) {
    maps.x = WeightMap(first.x, P::kTokens);
  }
  SmallProductParams params{.x = first.x,
                            .x_scales = first.x_scales,
                            .parts = {},
                            .part_count = static_cast<int>(products.size()),
                            .tiles = 0,
                            .blocks = blocks,
                            .split = 1,
                            .stages = 0,
                            .narrow = narrow != nullptr ? *narrow : LinearParams{},
                            .narrow_block = 0};
  for (std::size_t i = 0; i < products.size(); ++i) {
    const BlockScaledLinearParams& product = products[i];
    maps.weights[i] = WeightMap(product.weight, P::kTileRows);
    params.parts[i] = {.scales = product.weight_scales,
                       .y = product.y.data,
                       .y_stride = product.y.row_stride,
                       .y_type = product.y.type,
                       .outputs = static_cast<int>(product.weight.rows),
                       .first_tile = params.tiles};
    params.tiles += TilesOf(product, P::kTileRows);
  }
  const auto [tiles, split, clusters] = Grid(products, beside.is_alone, P::kSlabs);
  const int narrow_clusters = static_cast<int>(params.narrow.weight.rows) /
                              narrow_product::kOutputs * (P::kTokens / P::kNarrowTokens);
  const int all_blocks = (clusters + narrow_clusters) * split;
  const int per_multiprocessor =
      !beside.is_alone && P::kSlabs == 1 && all_blocks > MultiprocessorsFor(split) ? 2 : 1;
  const int budget = (kBlockSharedBytesMax + kBlockSystemBytes) / per_multiprocessor -
                     kBlockSystemBytes - P::FixedBytes(split) - beside.shared_bytes;
  const int tiles_each = (tiles + clusters - 1) / clusters;
  const int needed = (blocks + split - 1) / split * tiles_each;
  const int stages = std::min(budget / P::kStageBytes, needed);
  DSA_CHECK(stages >= std::min(P::kInFlight, needed),
            "SmallProduct: {} stages for {} tiles of {} columns, {} rows", stages, tiles,
            first.x.cols, first.x.rows);
  const int shared_bytes =
      std::max(P::FixedBytes(split) + stages * P::kStageBytes,
               narrow != nullptr ? static_cast<int>(sizeof(typename P::Narrow)) : 0);
  params.split = split;
  params.stages = stages;
  params.narrow_block = clusters * split;
  return {.maps = maps, .params = params, .blocks = all_blocks, .shared_bytes = shared_bytes};
}

template <typename P>
void LaunchProducts(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
                    cudaStream_t stream) {
  const Launch launch = MakeLaunch<P>(products, narrow, {});
  const auto kernel = SmallProductKernel<P>;
  static PerDevice attribute;
  attribute.Once([&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kBlockSharedBytesMax);
  });
  LaunchDependent(kernel,
                  {.grid = static_cast<unsigned>(launch.blocks),
                   .threads = P::kThreads,
                   .shared_bytes = launch.shared_bytes,
                   .cluster = static_cast<unsigned>(launch.params.split)},
                  stream, launch.maps, launch.params);
}

// Of 33 to 64 rows: small_product_many_rows.cu.
void LaunchManyRows(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
                    cudaStream_t stream);

}  // namespace dsa::cuda::small_product
