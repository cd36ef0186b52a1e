// Fp8 block-scaled products of 1 to 64 rows: one stream of weights at the speed of the memory.  A
// launch computes up to four products of one x: their tiles stand one behind the other.
//
//   y[t, n] = sum over blocks b of x_scales[t, b] * weight_scales[n / 128, b] * (x[t, b] . w[n, b])
//
// Weight rows lie on the M side of the tensor-core product, 64 an instruction, and rows of x on the
// N side, 8 to 64: nothing is padded but the small operand.  From 33 rows on the sides are changed:
// a thread then loads two scales of x a stage, not sixteen.  A block works through tiles of
//
//   64 weight rows x 128 columns of K  |  kTokens rows of x x 128  |  kTokens + 1 scales
//
// in a ring of stages in shared memory, as deep as it holds:
//
//   a warpgroup  4 wgmma of K = 32 a stage, then sum += partial * (x scale * w scale)
//   a warp       one thread: weight tiles, by tensor map, from before the kernels ahead have ended;
//                it initialises the barriers and does not wait for the other warps
//   three warps  rows of x and scales, in turns, by cp.async; rows beyond T are not read, columns
//                beyond K are zeros.  More than 16 rows come by tensor map: a stage of 64 would
//                take a warp 16 copies of 512 bytes, and the ring's first stages are asked for at
//                once
//
// A wide tile has 128 weight rows, on the M side, and a warpgroup more: 64 rows of x are as many
// bytes as a tile of 64 weight rows, and from 33 rows on what the L2 cache gives is the bound.  One
// of 96 has three warpgroups of 32, rows of x on the M side: as many clusters as find
// multiprocessors of their own, where tiles of 64 would be some more.
//
// Where the tiles are too few to draw the whole bandwidth, a cluster of 2 to 8 blocks splits K and
// sends its partial sums to the owner of each warp's rows, which adds them in the order of K.  The
// split depends on the weight's shape alone, so a row's bits do not depend on the rows beside it.
//
// A block leaves room for another, and the next launch is allowed when what it asks for at once, a
// ring of weights for each of its blocks, fills the time in which this one's last stages arrive,
// its parts of K are added and its rows stored.  Allowed at once, those weights would only be taken
// from this launch's.
//
// A narrow bfloat16 product of the same rows may stand beside them, in clusters of its own behind
// theirs (narrow_product.cuh): it waits for x as they do, not for them.
//
// Bytes: N K + T K + 4 N K / 128^2, and T N of y.  Memory-bound to T = 64.
#pragma once

#include "kernels/cuda/fp8_stage.cuh"
#include "kernels/cuda/narrow_product.cuh"
#include "kernels/cuda/ptx/copy_box.cuh"
#include "kernels/cuda/ptx/dependency.cuh"
#include "kernels/cuda/small_product.h"

#include <utility>

namespace dsa::cuda::small_product {

inline constexpr int kGroupWarps = 4;  // of a warpgroup
inline constexpr int kTokensMax = 64;
inline constexpr int kOutputsPerWarp = 16;

inline constexpr int kAllowAtWait = -1;  // when those ahead of this launch have ended

// One weight and what it gives.
struct Part {
  Matrix<const float> scales;
  void* y;
  std::int64_t y_stride;
  DataType y_type;
  int outputs;
  int first_tile;  // its tiles are those from here on
};
struct SmallProductParams {
  Matrix<const Fp8E4m3> x;
  Matrix<const float> x_scales;
  Part parts[kSmallProductsMax];
  int part_count;
  int tiles;   // of all parts
  int blocks;  // of K
  int split;   // blocks of a cluster, each a part of K
  int stages;
  bool is_single;  // one stage's products at a time: the ring is shallow
  // The next launch may start when so many stages of weights are asked for, or at kAllowAtWait.
  int allow_turn;
  int first_block = 0;  // those ahead of it have no part of this
  LinearParams narrow;
  int narrow_block;  // the first of its blocks; the grid has none of it if this is its end

  __device__ int PartOf(int tile) const {
    int part = 0;
    while (part + 1 < part_count && tile >= parts[part + 1].first_tile) {
      ++part;
    }
    return part;
  }
};
struct Maps {
  CUtensorMap weights[kSmallProductsMax];
  CUtensorMap x;
};

// Rows of x that a kernel takes, slabs of weight rows of a tile, which of both is on the M side of
// the products, for how many blocks a multiprocessor has registers, and weight rows of a slab, a
// warpgroup each.
template <int kRows, int kTileSlabs = 1, bool kInputFirst = false,
          int kShared = kTileSlabs == 1 ? 2 : 1, int kRowsOfSlab = kSlabRows>
struct Plan {
  static_assert(kInputFirst ? kRows == kSlabRows : kRowsOfSlab == kSlabRows,
                "the M side has 64 rows");
  static_assert(kValuesPerScale % kRowsOfSlab == 0, "a slab meets one scale of the weight");
  static constexpr int kTokens = kRows;
  static constexpr int kSlabs = kTileSlabs;
  static constexpr bool kInputIsM = kInputFirst;
  static constexpr int kResidents = kShared;
  static constexpr int kConsumerWarps = kSlabs * kGroupWarps;
  // Three make two whole warpgroups, and a thread still has 128 registers in each of two blocks.
  static constexpr int kInputWarps = kResidents == 1 ? 2 : 3;
  static constexpr int kWarps = kConsumerWarps + 1 + kInputWarps;
  static constexpr int kThreads = kWarps * kWarpSize;
  // In whole warpgroups, of which the last may have a warp too many.
  static constexpr int kBesideThreads =
      (kWarps + kGroupWarps - 1) / kGroupWarps * kGroupWarps * kWarpSize;
  static constexpr int kSlabOutputs = kRowsOfSlab;
  static constexpr int kOneSlabBytes = kSlabOutputs * kValuesPerScale;
  static constexpr int kTileRows = kSlabs * kSlabOutputs;
  static constexpr int kWeightBytes = kSlabs * kOneSlabBytes;
  static constexpr int kColumns = kInputIsM ? kSlabOutputs : kTokens;  // of the N side
  static constexpr int kRegisters = kColumns / 2;  // of a partial sum, per thread
  // Scales of the weight that a tile meets in 128 columns of K.
  static constexpr int kWeightScales = kValuesPerScale % kTileRows == 0 ? 1 : 2;
  // Products of scales that a thread's values of a stage meet.
  static constexpr int kScaleCount = kInputIsM ? 2 : kTokens / 4;
  static constexpr int kInputBytes = kTokens * kValuesPerScale;
  static constexpr int kScaleBytes = (kTokens + 4) * 4;
  static constexpr int kStageBytes = kWeightBytes + kInputBytes + kScaleBytes + 2 * 8;
  static constexpr int kWarpSumBytes = kWarpSize * kRegisters * 4;
  static constexpr bool kMapsInput = kTokens > 16;  // x comes by tensor map
  static constexpr int kFullArrivals = 1 + kWarpSize + (kMapsInput ? 1 : 0);
  // Three blocks leave a thread 80 registers, and a narrow product takes more.
  static constexpr bool kTakesNarrow = kSlabs == 1 && kResidents <= 2;
  // Rows of a narrow cluster: more blocks wait for x at once than one of 64 rows would.
  static constexpr int kNarrowTokens = kTokens > 16 ? 16 : kTokens;
  using Narrow = narrow_product::Shared<kNarrowTokens / 8, kWarps>;
  // Stages whose products are under way at once, unless it is one; a consumer holds that many.
  // Three warpgroups take turns anyway, and have 64 registers a thread.
  static constexpr int kInFlight = kSlabs > 2
                                       ? 1
                                       : (kTokens >= 32 || (kTokens > 8 && kResidents > 2) ? 2 : 4);
  // Warps whose sums one block of a cluster owns, at most.
  static constexpr int OwnedWarps(int split) { return (kConsumerWarps + split - 1) / split; }
  // Everything but the stages.
  static constexpr int FixedBytes(int split) {
    return kTileAlignment + 64 + OwnedWarps(split) * (split - 1) * kWarpSumBytes;
  }
};

// Shared memory of a block: addresses of stage 0 of each part.
struct Ring {
  unsigned tiles;
  unsigned inputs;
  unsigned scales;
  unsigned full;   // 8 bytes a stage: what threads ask for with its bytes, an input warp's lanes
  unsigned empty;  // 8 bytes a stage: the consumer warps
  unsigned sums_landed;
  // Partial sums of the other blocks, [owned warp][rank among the others][registers / 4][lane] x 16
  // bytes.
  unsigned sums;
};

template <typename P>
__device__ Ring MakeRing(const void* shared, int stages) {
  Ring ring;
  ring.tiles = (ptx::SharedAddress(shared) + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
  ring.inputs = ring.tiles + stages * P::kWeightBytes;
  ring.scales = ring.inputs + stages * P::kInputBytes;
  ring.full = (ring.scales + stages * P::kScaleBytes + 7) & ~7U;
  ring.empty = ring.full + 8 * stages;
  ring.sums_landed = ring.empty + 8 * stages;
  ring.sums = (ring.sums_landed + 8 + 15) & ~15U;
  return ring;
}

enum NamedBarrier { kProductMeets = 2 };

// Beside other warps, of which a thread has as many registers as one of the launch: those that load
// need few, and 64 rows' sums are more than are left.
inline constexpr int kBesideConsumerRegisters = 152;
inline constexpr int kBesideLoaderRegisters = 88;

// What a block computes: tiles first, first + step, ... and of each the blocks of K
// [k_first, k_end).
struct Share {
  int rank;
  int k_first;
  int k_end;
  int first;
  int step;
  int tiles;
  __device__ explicit Share(const SmallProductParams& p)
      : rank(p.split > 1 ? static_cast<int>(ptx::ClusterRank()) : 0),
        k_first(p.blocks * rank / p.split),
        k_end(p.blocks * (rank + 1) / p.split),
        first((static_cast<int>(blockIdx.x) - p.first_block) / p.split),
        step(p.narrow_block / p.split),
        tiles(p.tiles) {}
};

// One thread.  It does not wait for the kernels before this one: the ring is full of weights by the
// time that the rows of x are there.
template <typename P>
__device__ void LoadWeights(const Maps& maps, const SmallProductParams& p, const Ring& ring,
                            const Share& share) {
  constexpr int kBytes = P::kWeightBytes;
  const std::uint64_t policy = ptx::EvictFirst();
  Cursor at;
  if (p.allow_turn == 0) {
    ptx::AllowSuccessor();
  }
  for (int tile = share.first; tile < share.tiles; tile += share.step) {
    const int part = p.PartOf(tile);
    const CUtensorMap* const map = &maps.weights[part];
    const int row = (tile - p.parts[part].first_tile) * P::kTileRows;
    for (int k = share.k_first; k < share.k_end; ++k) {
      if (at.turn >= p.stages) {
        ptx::BarrierWait(ring.empty + 8 * at.stage, at.phase ^ 1U);
      }
      const unsigned full = ring.full + 8 * at.stage;
      ptx::BarrierExpect(full, kBytes);  // rows beyond the weight come as zeros
      ptx::CopyBox(ring.tiles + at.stage * kBytes, map, full, k * kValuesPerScale, row, policy);
      at.Next(p.stages);
      if (at.turn == p.allow_turn) {
        ptx::AllowSuccessor();
      }
    }
  }
}

template <typename P>
__device__ void LoadInput(const Maps& maps, const SmallProductParams& p, const Ring& ring,
                          const Share& share, int input_warp, int lane) {
  constexpr int kTokens = P::kTokens;
  constexpr int kChunkBytes = 16;
  constexpr int kChunks = kValuesPerScale / kChunkBytes;
  constexpr int kRowsAtOnce = kWarpSize / kChunks;
  const int tokens = static_cast<int>(p.x.rows);
  const int row = lane / kChunks;
  const int chunk = lane % kChunks;
  Cursor at;
  ptx::WaitForPredecessors();  // for the block: y depends on what is read here
  if (p.allow_turn == kAllowAtWait && input_warp == 0) {
    ptx::AllowSuccessor();
  }
  if (P::kMapsInput) {
    ptx::CopyEngineFence();  // x was written by threads
  }
  for (int tile = share.first; tile < share.tiles; tile += share.step) {
    const Part& part = p.parts[p.PartOf(tile)];
    const int scale_row = (tile - part.first_tile) * P::kTileRows / kValuesPerScale;
    const float* weight_scales = part.scales.Row(scale_row);
    // Of few rows a lane each has the scales of x, and one those of the weight.
    const float* scale_source = lane < tokens ? p.x_scales.Row(lane) : weight_scales;
    for (int k = share.k_first; k < share.k_end; ++k) {
      if (at.turn % P::kInputWarps == input_warp) {
        if (at.turn >= p.stages) {
          ptx::BarrierWait(ring.empty + 8 * at.stage, at.phase ^ 1U);
        }
        const unsigned target = ring.inputs + at.stage * P::kInputBytes;
        const unsigned scales = ring.scales + at.stage * P::kScaleBytes;
        if constexpr (P::kMapsInput) {
          if (lane == 0) {
            const unsigned full = ring.full + 8 * at.stage;
            ptx::BarrierExpect(full, P::kInputBytes);  // rows beyond x come as zeros
            ptx::CopyBox(target, maps.x, full, ptx::At2{k * kValuesPerScale, 0});
          }
          __syncwarp();
        } else {
          const int column = k * kValuesPerScale + chunk * kChunkBytes;
          const bool exists = column < static_cast<int>(p.x.cols);
          const Fp8E4m3* source = p.x.data + (exists ? column : 0);
#pragma unroll
          for (int i = 0; i < kTokens / kRowsAtOnce; ++i) {
            const int t = row + kRowsAtOnce * i;
            if (t < tokens) {
              const int place = chunk ^ (t % kChunks);  // the 128-byte swizzle
              ptx::CopyAsync16(target + t * kValuesPerScale + place * kChunkBytes,
                               source + t * p.x.row_stride, exists ? kChunkBytes : 0);
            }
          }
        }
        if constexpr (kTokens < kWarpSize) {
          if (lane < tokens || lane == kTokens) {
            ptx::CopyAsync4(scales + lane * 4, scale_source + k);
          }
        } else {
#pragma unroll
          for (int i = 0; i < kTokens / kWarpSize; ++i) {
            const int t = lane + kWarpSize * i;
            if (t < tokens) {
              ptx::CopyAsync4(scales + t * 4, p.x_scales.Row(t) + k);
            }
          }
          if (lane < P::kWeightScales && scale_row + lane < static_cast<int>(part.scales.rows)) {
            ptx::CopyAsync4(scales + (kTokens + lane) * 4,
                            weight_scales + lane * part.scales.row_stride + k);
          }
        }
        ptx::CopyAsyncArrive(ring.full + 8 * at.stage);
      }
      at.Next(p.stages);
    }
  }
}

// One tile: sum += partial * scales over `blocks` stages, the weight's the scale-th of a stage.
// Several partial sums are under way at once, and all end in the turn that began them: the compiler
// serialises products whose registers live across a loop's end.
template <typename P>
__device__ void Accumulate(const Ring& ring, int stages, Cursor& at, int blocks, bool is_single,
                           int slab, int scale, float (&sum)[P::kRegisters]) {
  constexpr int kTokens = P::kTokens;
  constexpr int kRegisters = P::kRegisters;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const auto turn = [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    constexpr int kCount = sizeof...(kIndex);
    float partial[kCount][kRegisters];
    float scales[kCount][P::kScaleCount];
    int stage[kCount];
    (
        [&] {
          stage[kIndex] = at.stage;
          ptx::BarrierWait(ring.full + 8 * at.stage, at.phase);
          if (!P::kMapsInput) {
            ptx::AsyncProxyFence();  // rows of x were written by threads
          }
          at.Next(stages);
          const unsigned weights =
              ring.tiles + stage[kIndex] * P::kWeightBytes + slab * P::kOneSlabBytes;
          const unsigned inputs = ring.inputs + stage[kIndex] * P::kInputBytes;
          BeginStage<P::kColumns>(P::kInputIsM ? inputs : weights, P::kInputIsM ? weights : inputs,
                                  partial[kIndex]);
        }(),
        ...);
    const auto load_scales = [&](int index) {
      const unsigned from = ring.scales + stage[index] * P::kScaleBytes;
      if constexpr (P::kInputIsM) {
        LoadRowScales(from, from + (kTokens + scale) * 4, scales[index]);
      } else {
        LoadStageScales<kTokens>(from, from + kTokens * 4, lane, scales[index]);
      }
    };
    constexpr bool kLoadsAllScales = P::kScaleCount < kTokensMax / 4;
    if constexpr (kLoadsAllScales) {
      (load_scales(kIndex), ...);
    }
    (
        [&] {
          if constexpr (!kLoadsAllScales) {  // there are no registers for all of them
            load_scales(kIndex);
          }
          ptx::WgmmaWait<kCount - 1 - kIndex>();
          __syncwarp();
          if (lane == 0) {
            ptx::BarrierArrive(ring.empty + 8 * stage[kIndex]);
          }
          if constexpr (P::kInputIsM) {
            AddRowStage(partial[kIndex], scales[kIndex], sum);
          } else {
            AddStage<kTokens>(partial[kIndex], scales[kIndex], sum);
          }
        }(),
        ...);
  };
#pragma unroll
  for (int i = 0; i < kRegisters; ++i) {
    sum[i] = 0.0F;
  }
  int block = 0;
  if (!is_single) {
    for (; block + P::kInFlight <= blocks; block += P::kInFlight) {
      turn(std::make_integer_sequence<int, P::kInFlight>{});
    }
  }
  for (; block < blocks; ++block) {
    turn(std::make_integer_sequence<int, 1>{});
  }
}

// The sum over the blocks of a cluster, in the owner of the warp's rows; false in the others.  A
// part is added as a whole, so that its reads are under way at once: 64 rows took 1.2 us longer
// where all parts of four values were added before the next four.
template <typename P>
__device__ bool SumOverCluster(const Ring& ring, int split, int rank, int warp, int lane,
                               float (&sum)[P::kRegisters]) {
  constexpr int kConsumerWarps = P::kConsumerWarps;
  const int owner = warp * split / kConsumerWarps;
  const int first_owned = (owner * kConsumerWarps + split - 1) / split;
  const unsigned places =
      ring.sums + (warp - first_owned) * (split - 1) * P::kWarpSumBytes + lane * 16;
  const auto place_of = [&](int from) {
    return places + (from < owner ? from : from - 1) * P::kWarpSumBytes;
  };
  ptx::ClusterWait();  // the others' barriers are initialised; long past
  if (owner != rank) {
    const unsigned landed = ptx::AddressInBlock(ring.sums_landed, owner);
    const unsigned target = ptx::AddressInBlock(place_of(rank), owner);
#pragma unroll
    for (int i = 0; i < P::kRegisters; i += 4) {
      ptx::StoreInBlock(target + i * 128, make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]),
                        landed);
    }
    return false;
  }
  ptx::BarrierWait(ring.sums_landed, 0);
  // Of few rows several parts are read at once, of many a part is enough.
  constexpr int kPartsAtOnce = P::kRegisters <= 8 ? 4 : 1;
  float total[P::kRegisters] = {};
#pragma unroll kPartsAtOnce
  for (int from = 0; from < split; ++from) {
    if (from == rank) {
#pragma unroll
      for (int i = 0; i < P::kRegisters; ++i) {
        total[i] += sum[i];
      }
    } else {
      const unsigned place = place_of(from);
#pragma unroll
      for (int i = 0; i < P::kRegisters; i += 4) {
        const float4 part = ptx::LoadShared4(place + i * 128);
        total[i] += part.x;
        total[i + 1] += part.y;
        total[i + 2] += part.z;
        total[i + 3] += part.w;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < P::kRegisters; ++i) {
    sum[i] = total[i];
  }
  return true;
}

// Stores of 16 bytes where a block has tile after tile: the next one's products wait for them.  Of
// one tile, split among blocks, what counts is the time to the first store, and turning is longer.
template <int kRegisters, typename RowOf, typename Y>
__device__ void StoreTile(const SmallProductParams& p, const Part& part,
                          const float (&sum)[kRegisters], int outputs, const RowOf& row_of,
                          Y type) {
  const int tokens = static_cast<int>(p.x.rows);
  if constexpr (sizeof(Y) == 2) {
    constexpr int kAlignment = 16;
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(part.y) % kAlignment == 0 &&
                            part.y_stride * sizeof(Y) % kAlignment == 0;
    if (p.split == 1 && is_aligned) {
      StoreRowsBy16(sum, tokens, outputs, row_of);
      return;
    }
  }
  StoreRows(sum, tokens, outputs, row_of, type);
}

// The products by P::kThreads threads of a block; by P::kBesideThreads from warp kFirstWarp
// on, a multiple of four, where others are ahead of them.  Where a cluster splits K, those arrive
// at the cluster's barrier, once.
template <typename P, int kFirstWarp>
__device__ void Run(const Maps& maps, const SmallProductParams& p, std::uint8_t* shared) {
  constexpr int kConsumerWarps = P::kConsumerWarps;
  const Ring ring = MakeRing<P>(shared, p.stages);
  const Share share(p);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize - kFirstWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (lane == 0) {
    if (warp == kConsumerWarps) {
      ptx::PrefetchMap(maps.weights[p.PartOf(share.first)]);
    } else if (P::kMapsInput && warp == kConsumerWarps + 1) {
      ptx::PrefetchMap(maps.x);
    }
  }
  constexpr int kMeeting = kFirstWarp == 0 ? P::kThreads : P::kBesideThreads;
  if (warp == kConsumerWarps) {
    if (lane == 0) {
      for (int stage = 0; stage < p.stages; ++stage) {
        ptx::BarrierInit(ring.full + 8 * stage, P::kFullArrivals);
        ptx::BarrierInit(ring.empty + 8 * stage, kConsumerWarps);
      }
      if (p.split > 1) {
        const int owned = ((share.rank + 1) * kConsumerWarps + p.split - 1) / p.split -
                          (share.rank * kConsumerWarps + p.split - 1) / p.split;
        ptx::BarrierInit(ring.sums_landed, 1);
        ptx::BarrierExpect(ring.sums_landed, owned * (p.split - 1) * P::kWarpSumBytes);
      }
      ptx::BarrierInitFence();
      ptx::AsyncProxyFence();
    }
    __syncwarp();
    ptx::NamedBarrierArrive(kProductMeets, kMeeting);  // and goes on to the weights
  } else {
    ptx::NamedBarrierSync(kProductMeets, kMeeting);
  }
  if (p.split > 1) {
    ptx::ClusterArrive();
  }

  if (warp >= kConsumerWarps) {
    if constexpr (kFirstWarp > 0) {
      ptx::LowerRegisters<kBesideLoaderRegisters>();
    }
    if (warp == kConsumerWarps) {
      if (lane == 0) {
        LoadWeights<P>(maps, p, ring, share);
      }
    } else if (warp < P::kWarps) {
      LoadInput<P>(maps, p, ring, share, warp - kConsumerWarps - 1, lane);
    }
  } else {
    if constexpr (kFirstWarp > 0) {
      ptx::RaiseRegisters<kBesideConsumerRegisters>();
    }
    Cursor at;
    float sum[P::kRegisters];
    for (int tile = share.first; tile < share.tiles; tile += share.step) {
      // The compiler does not see that a warp of one warpgroup is none but the first one's, and
      // has no register to spare for a slab of 64 rows' sums.
      const int slab = P::kSlabs == 1 ? 0 : warp / kGroupWarps;
      int scale = 0;
      if constexpr (P::kWeightScales > 1) {
        const int row = (tile - p.parts[p.PartOf(tile)].first_tile) * P::kTileRows;
        scale = (row + slab * P::kSlabOutputs) / kValuesPerScale - row / kValuesPerScale;
      }
      Accumulate<P>(ring, p.stages, at, share.k_end - share.k_first, p.is_single, slab, scale, sum);
      if (p.split > 1 && !SumOverCluster<P>(ring, p.split, share.rank, warp, lane, sum)) {
        break;  // a cluster has one tile
      }
      const Part& part = p.parts[p.PartOf(tile)];
      const int output = (tile - part.first_tile) * P::kTileRows +
                         (P::kInputIsM ? slab * P::kSlabOutputs : warp * kOutputsPerWarp);
      if (output < part.outputs) {
        const int tokens = static_cast<int>(p.x.rows);
        const auto store = [&]<typename Y>(Y type) {
          Y* const y = static_cast<Y*>(part.y) + output;
          const auto row_of = [&](int t) { return y + t * part.y_stride; };
          if constexpr (P::kInputIsM) {
            StoreTile(p, part, sum, part.outputs - output, row_of, type);
          } else {
            StoreSlab<P::kTokens>(sum, tokens, lane, row_of, type);
          }
        };
        if (part.y_type == DataType::kF32) {
          store(float{});
        } else {
          store(__nv_bfloat16{});
        }
      }
    }
  }
  // An owner ends after every byte that others send to it has landed; nobody writes into the rest.
}

template <typename P>
__global__ void __launch_bounds__(P::kThreads, P::kResidents)
    SmallProductKernel(const __grid_constant__ Maps maps,
                       const __grid_constant__ SmallProductParams p) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  const int block = static_cast<int>(blockIdx.x);
  if constexpr (P::kTakesNarrow) {
    if (block >= p.narrow_block) {
      ptx::AllowSuccessor();
      constexpr int kTokenParts = P::kTokens / P::kNarrowTokens;
      const int cluster = (block - p.narrow_block) / p.split;
      narrow_product::Run<P::kNarrowTokens / 8, P::kWarps>(
          p.narrow,
          {.output = cluster / kTokenParts * narrow_product::kOutputs,
           .token = cluster % kTokenParts * P::kNarrowTokens},
          *reinterpret_cast<typename P::Narrow*>(shared));
      return;
    }
  }
  Run<P, 0>(maps, p, shared);
}

}  // namespace dsa::cuda::small_product
