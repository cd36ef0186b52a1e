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
// memory does, so two or three blocks share one; longer ones would leave the last wave uneven.
inline constexpr int kShortColumns = 2048;
inline constexpr int kShortTokens = 16;  // up to here three blocks may

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
  // Of tiles of so many weight rows, and so many blocks that share a multiprocessor where K is
  // short.
  Grid(std::span<const BlockScaledLinearParams> products, int tile_rows, int residents) {
    int slab_tiles = 0;
    for (const BlockScaledLinearParams& product : products) {
      slab_tiles += TilesOf(product);
      tiles += TilesOf(product, tile_rows);
    }
    const std::int64_t columns = products.front().x.cols;
    split = SplitOf(slab_tiles, columns);
    const int places = kMultiprocessors * (columns <= kShortColumns ? residents : 1);
    clusters = split > 1 ? tiles : std::min(tiles, places);
  }
  int blocks() const { return clusters * split; }
};

// Whether three blocks share a multiprocessor, not two: where K is short, and as many tiles as one
// gets at most are fewer then.
inline bool SharesByThree(std::span<const BlockScaledLinearParams> products) {
  const Matrix<const Fp8E4m3>& x = products.front().x;
  const auto most = [&](int residents) {
    const Grid grid(products, kSlabRows, residents);
    const int places = kMultiprocessors * residents;
    return (grid.tiles + places - 1) / places * residents;
  };
  return x.rows <= kShortTokens && x.cols <= kShortColumns &&
         Grid(products, kSlabRows, 1).split == 1 && most(3) < most(2);
}

// Whether blocks of 96 weight rows find a multiprocessor each where those of 64 do not: one that
// has two of these takes as long as for both.  Clusters of four, the only ones measured.
inline constexpr int kThreeSlabsRows = 96;
inline bool FitsInThreeSlabs(std::span<const BlockScaledLinearParams> products) {
  const Grid one(products, kSlabRows, 1);
  const Grid three(products, kThreeSlabsRows, 1);
  const int places = MultiprocessorsFor(one.split);
  return one.split == 4 && one.blocks() > places && three.blocks() <= places;
}

// A launch of P::kThreads threads a block, or with others beside them.
struct Launch {
  Maps maps;
  SmallProductParams params;
  int blocks;
  int shared_bytes;
};

// SmallProductParams::allow_turn of a launch of `blocks` in all: what the next launch asks for
// ahead of its rows of x, a ring of weights, takes bandwidth from this one's last stages, and shall
// fill the time in which this one ends.
inline int AllowTurn(const SmallProductParams& p, int residents, int blocks) {
  const bool is_few = p.x.rows <= 8;
  const bool is_one_each = blocks <= kMultiprocessors;
  // Of a step of few rows the launches that follow have more to win by an early start, and without
  // a split the next one's blocks take the places of those that end.
  if (p.split == 1 || (is_few && !is_one_each)) {
    return 0;
  }
  const int share = p.blocks / p.split;
  if (residents == 1) {
    return std::max(share - 4, 0);  // few of the next one's find room before that
  }
  // Of a deeper ring, what comes in the time in which this one ends is less.
  constexpr int kStagesOfEnd = 7;
  // The next one starts within the time of some three stages.
  constexpr int kLongShare = 20;
  const int start = is_one_each && share >= kLongShare ? 3 : 0;
  const int turn = share - std::min(p.stages, kStagesOfEnd) - start;
  if (turn > p.stages) {
    return turn;
  }
  return is_few ? 0 : kAllowAtWait;  // most of this one's are asked for before x is there
}

// `beside_shared_bytes`: of a block, what others take.
template <typename P>
Launch MakeLaunch(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
                  int beside_shared_bytes = 0) {
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
  const auto [tiles, split, clusters] = Grid(products, P::kTileRows, P::kResidents);
  const int narrow_clusters = static_cast<int>(params.narrow.weight.rows) /
                              narrow_product::kOutputs * (P::kTokens / P::kNarrowTokens);
  const int all_blocks = (clusters + narrow_clusters) * split;
  const bool is_short = first.x.cols <= kShortColumns;
  // Where K is split the next launch gets ready beside this one.
  const int per_multiprocessor = split > 1 || is_short ? P::kResidents : 1;
  const int budget = (kBlockSharedBytesMax + kBlockSystemBytes) / per_multiprocessor -
                     kBlockSystemBytes - P::FixedBytes(split) - beside_shared_bytes;
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
  params.is_single = P::kResidents == 2 && (split > 1 || (is_short && P::kTokens > kShortTokens));
  params.allow_turn = AllowTurn(params, P::kResidents, all_blocks);
  params.narrow_block = clusters * split;
  return {.maps = maps, .params = params, .blocks = all_blocks, .shared_bytes = shared_bytes};
}

template <typename P>
void LaunchProducts(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
                    cudaStream_t stream) {
  const Launch launch = MakeLaunch<P>(products, narrow);
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

// Of up to 16 rows, three blocks a multiprocessor: small_product_short.cu.
void LaunchShort(std::span<const BlockScaledLinearParams> products, cudaStream_t stream);

// Of 33 to 64 rows: small_product_many_rows.cu.
void LaunchManyRows(std::span<const BlockScaledLinearParams> products, const LinearParams* narrow,
                    cudaStream_t stream);

}  // namespace dsa::cuda::small_product
