// The experts of a layer in one resident launch: gate and up, SwiGLU, quantization, down, and the
// weighted sum with the shared expert last.  One block a multiprocessor, all there at once.
//
// Blocks take tiles from a counter, all inner tiles before the outer ones, so that nothing waits
// for a tile that has not begun.
//
//   inner tile   128 rows of gate and the same 128 of up, for up to 64 pairs of one expert.  A
//                thread holds both of one output, so SwiGLU, the maximum of 128 values and e4m3
//                happen in registers
//   outer tile   256 rows of down for the same pairs.  Its rows of x wait until the expert's inner
//                tiles are done, its weights do not
//
//   warps 0-7    two warpgroups, 2 x 64 weight rows each, 8 to 64 pairs on the N side
//   warp 8       one thread: takes tiles, announces them, asks for weights by tensor map
//   warps 9, 10  rows of x and scales, stage by stage in turns, by cp.async
//   warp 11      adds a token's contributions, 256 columns at a time, as soon as all experts have
//                given theirs, while the others stream on; at the end all warps help
//
// A pair's bits depend on its row, its expert and the order of K alone.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/fp8_stage.cuh"
#include "kernels/cuda/pair_sort.cuh"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/swiglu.cuh"

#include <cstdint>

#include <cuda.h>

namespace dsa::cuda::resident_experts {

inline constexpr int kConsumerWarps = 8;
inline constexpr int kConsumers = kConsumerWarps * kWarpSize;
inline constexpr int kWeightWarp = 8;
inline constexpr int kInputWarps = 2;  // from 9 on
inline constexpr int kThreads = 384;
inline constexpr int kTilePairs = 64;
// Per thread: 64 pairs take two products' sums at once.
inline constexpr int kConsumerRegisters = 208;
inline constexpr int kOtherRegisters = 88;
inline constexpr int kBoxRows = 128;  // of one copy; also of gate, or of up, in a tile
inline constexpr int kBoxBytes = kBoxRows * kValuesPerScale;
inline constexpr int kTileRows = 2 * kBoxRows;
inline constexpr int kTileBytes = 2 * kBoxBytes;
inline constexpr int kInputBytes = kTilePairs * kValuesPerScale;
inline constexpr int kScaleBytes = (kTilePairs + 2) * 4;  // of the pairs and of both boxes
inline constexpr int kStages = 5;
inline constexpr int kStageBytes = kTileBytes + kInputBytes + kScaleBytes + 2 * 8;
inline constexpr int kSharedBytes = kTileAlignment + kStages * kStageBytes + 8;
inline constexpr int kQueue = 4;  // tiles announced ahead
inline constexpr int kSumColumns = kTileRows;
inline constexpr int kPackedStride = kBoxRows + 16;

enum NamedBarrier { kConsumersMeet = 1 };
enum Which { kRouted, kShared, kKinds };

// Zeroed by every Prepare.
struct Counters {
  int* tiles_taken;
  int* sums_taken;
  int* inner_done;  // [tiles of pairs]  warps that have stored their part
  int* outer_done;  // [outer tiles]
};
struct ExpertMaps {
  CUtensorMap gate[kKinds];
  CUtensorMap up[kKinds];
  CUtensorMap down[kKinds];
};

struct ExpertScales {
  Matrix<const float> gate;  // [E * I / 128, D / 128]
  Matrix<const float> up;
  Matrix<const float> down;  // [E * D / 128, I / 128]
};

struct ExpertsParams {
  PairChoice choice;
  SortedPairs sorted;
  int tiles_max;
  Counters counters;
  Matrix<const Fp8E4m3> x;
  Matrix<const float> x_scales;
  ExpertScales scales[kKinds];
  Fp8E4m3* inner;
  float* inner_scales;
  ScaleFormat scale_format;
  void* contributions;  // [P, D]  of the sorted pairs; as shared and y of the kernel's type
  Matrix<const float> weights;
  const void* shared;  // a shared expert's output, or null
  std::int64_t shared_stride;
  void* y;
  std::int64_t y_stride;
  int width;
};

// A tile as it is announced.
struct alignas(16) Task {
  int item;  // all: none is left
  int expert;
  int first;  // of the sorted pairs
  int count;
};

struct BlockShared {
  std::uint8_t packed[kTilePairs][kPackedStride];
  float maxima[kConsumerWarps][kTilePairs];
  Task queue[kQueue];
  std::uint64_t announced[kQueue];
  std::uint64_t taken[kQueue];
};

// The tiles of a launch: inner tiles of each tile of pairs, then outer ones column by column.
struct Work {
  int groups;  // tiles of pairs
  int inner_tiles;
  int outer_tiles;
  int inner_blocks;  // of K
  int outer_blocks;
  __device__ Work(const ExpertsParams& p, int used)
      : groups(used),
        inner_tiles(p.width / kBoxRows),
        outer_tiles((static_cast<int>(p.x.cols) + kTileRows - 1) / kTileRows),
        inner_blocks(static_cast<int>(p.x.cols) / kValuesPerScale),
        outer_blocks(p.width / kValuesPerScale) {}
  __device__ int inner_items() const { return groups * inner_tiles; }
  __device__ int items() const { return inner_items() + groups * outer_tiles; }
  __device__ bool IsInner(int item) const { return item < inner_items(); }
  __device__ int Group(int item) const {
    return IsInner(item) ? item / inner_tiles : (item - inner_items()) % groups;
  }
  __device__ int Column(int item) const {
    return IsInner(item) ? item % inner_tiles : (item - inner_items()) / groups;
  }
  __device__ int Blocks(int item) const { return IsInner(item) ? inner_blocks : outer_blocks; }
};

// Shared addresses of stage 0 of each part.
struct Ring {
  unsigned tiles;
  unsigned inputs;
  unsigned scales;
  unsigned full;   // 8 bytes a stage: the weights' thread, its bytes, and the input warp's lanes
  unsigned empty;  // 8 bytes a stage: the consumer warps
  __device__ explicit Ring(const void* shared)
      : tiles((ptx::SharedAddress(shared) + kTileAlignment - 1) / kTileAlignment * kTileAlignment),
        inputs(tiles + kStages * kTileBytes),
        scales(inputs + kStages * kInputBytes),
        full((scales + kStages * kScaleBytes + 7) & ~7U),
        empty(full + 8 * kStages) {}
};

__device__ inline int LoadAcquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
// Announces that the warp's earlier stores are there.
__device__ inline void Signal(int* counter, int lane) {
  __threadfence();
  __syncwarp();
  if (lane == 0) {
    atomicAdd(counter, 1);
  }
}
__device__ inline void WaitUntil(const int* counter, int value, unsigned sleep_ns, int lane) {
  if (lane == 0) {
    while (LoadAcquire(counter) < value) {
      __nanosleep(sleep_ns);
    }
  }
  __syncwarp();
}

// The next tile, for the input warp and the consumers.
__device__ inline Task NextTask(BlockShared& shared, Cursor& turn, int lane) {
  ptx::BarrierWait(ptx::SharedAddress(shared.announced + turn.stage), turn.phase);
  const Task task = shared.queue[turn.stage];
  __syncwarp();
  if (lane == 0) {
    ptx::BarrierArrive(ptx::SharedAddress(shared.taken + turn.stage));
  }
  turn.Next(kQueue);
  return task;
}

// The two boxes of a tile: maps and their first rows.
struct Boxes {
  const CUtensorMap* maps[2];
  int rows[2];
  __device__ Boxes(const ExpertMaps& maps_of, const ExpertsParams& p, bool is_inner, int expert,
                   int column) {
    const int kind = expert == p.choice.expert_count ? kShared : kRouted;
    const int own = kind == kShared ? 0 : expert;
    maps[0] = is_inner ? &maps_of.gate[kind] : &maps_of.down[kind];
    maps[1] = is_inner ? &maps_of.up[kind] : maps[0];
    rows[0] = is_inner ? own * p.width + column * kBoxRows
                       : own * static_cast<int>(p.x.cols) + column * kTileRows;
    rows[1] = is_inner ? rows[0] : rows[0] + kBoxRows;
  }
};

__device__ inline void StreamTile(const Boxes& boxes, const Ring& ring, Cursor& at, int blocks,
                                  std::uint64_t policy) {
  for (int k = 0; k < blocks; ++k) {
    if (at.turn >= kStages) {
      ptx::BarrierWait(ring.empty + 8 * at.stage, at.phase ^ 1U);
    }
    const unsigned full = ring.full + 8 * at.stage;
    const unsigned target = ring.tiles + at.stage * kTileBytes;
    ptx::BarrierExpect(full, kTileBytes);
    ptx::CopyBox(target, boxes.maps[0], full, k * kValuesPerScale, boxes.rows[0], policy);
    ptx::CopyBox(target + kBoxBytes, boxes.maps[1], full, k * kValuesPerScale, boxes.rows[1],
                 policy);
    at.Next(kStages);
  }
}

// One thread.
__device__ inline void LoadWeights(const ExpertMaps& maps, const ExpertsParams& p,
                                   BlockShared& shared, const Ring& ring, const Work& work,
                                   PairTile group) {
  const std::uint64_t policy = ptx::EvictFirst();
  Cursor at;
  Cursor turn;
  for (int item = static_cast<int>(blockIdx.x);;) {
    ptx::BarrierWait(ptx::SharedAddress(shared.taken + turn.stage), turn.phase ^ 1U);
    shared.queue[turn.stage] = {
        .item = item, .expert = group.expert, .first = group.first, .count = group.count};
    ptx::BarrierArrive(ptx::SharedAddress(shared.announced + turn.stage));
    turn.Next(kQueue);
    if (item >= work.items()) {
      return;
    }
    // Comes while this tile streams.
    const int next = static_cast<int>(gridDim.x) + atomicAdd(p.counters.tiles_taken, 1);
    StreamTile(Boxes(maps, p, work.IsInner(item), group.expert, work.Column(item)), ring, at,
               work.Blocks(item), policy);
    item = next;
    group = item < work.items() ? p.sorted.tiles[work.Group(item)] : PairTile{};
  }
}

// Where a lane of the input warp reads: rows of x or of the inner activations, and scales.
struct InputSource {
  static constexpr int kChunks = kValuesPerScale / 16;
  static constexpr int kRowsAtOnce = kWarpSize / kChunks;
  static constexpr int kRows = kTilePairs / kRowsAtOnce;  // of a lane
  const Fp8E4m3* rows[kRows];                             // null: no row
  const float* row_scales[kTilePairs / kWarpSize];
  const float* weight_scales;  // of lanes 0 and 1

  __device__ InputSource(const ExpertsParams& p, const Work& work, const Task& task, int lane) {
    const bool is_inner = work.IsInner(task.item);
    const auto row_of = [&](int pair) {
      return is_inner ? p.sorted.tokens[task.first + pair] : task.first + pair;
    };
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int pair = lane / kChunks + kRowsAtOnce * i;
      rows[i] = nullptr;
      if (pair < task.count) {
        rows[i] =
            (is_inner ? p.x.Row(row_of(pair)) : p.inner + row_of(pair) * std::int64_t{p.width}) +
            lane % kChunks * 16;
      }
    }
#pragma unroll
    for (int i = 0; i < kTilePairs / kWarpSize; ++i) {
      const int pair = lane + kWarpSize * i;
      row_scales[i] = nullptr;
      if (pair < task.count) {
        row_scales[i] = is_inner ? p.x_scales.Row(row_of(pair))
                                 : p.inner_scales + row_of(pair) * std::int64_t{work.outer_blocks};
      }
    }
    const int kind = task.expert == p.choice.expert_count ? kShared : kRouted;
    const int own = kind == kShared ? 0 : task.expert;
    const int column = work.Column(task.item);
    if (is_inner) {
      const Matrix<const float>& scales = lane == 0 ? p.scales[kind].gate : p.scales[kind].up;
      weight_scales = scales.Row(own * work.inner_tiles + column);
    } else {
      // The last tile may have one box only.
      const int box = min(2 * column + lane % 2, work.inner_blocks - 1);
      weight_scales = p.scales[kind].down.Row(own * work.inner_blocks + box);
    }
  }
};

__device__ inline void LoadInput(const ExpertsParams& p, BlockShared& shared, const Ring& ring,
                                 const Work& work, int input_warp, int lane) {
  Cursor at;
  Cursor turn;
  while (true) {
    const Task task = NextTask(shared, turn, lane);
    if (task.item >= work.items()) {
      return;
    }
    const InputSource source(p, work, task, lane);
    if (!work.IsInner(task.item)) {
      WaitUntil(p.counters.inner_done + work.Group(task.item), work.inner_tiles * kConsumerWarps,
                64, lane);
    }
    for (int k = 0; k < work.Blocks(task.item); ++k) {
      if (at.turn % kInputWarps != input_warp) {
        at.Next(kStages);
        continue;
      }
      if (at.turn >= kStages) {
        ptx::BarrierWait(ring.empty + 8 * at.stage, at.phase ^ 1U);
      }
      const unsigned inputs = ring.inputs + at.stage * kInputBytes;
      const unsigned scales = ring.scales + at.stage * kScaleBytes;
#pragma unroll
      for (int i = 0; i < InputSource::kRows; ++i) {
        if (source.rows[i] != nullptr) {
          const int pair = lane / InputSource::kChunks + InputSource::kRowsAtOnce * i;
          const int place = lane % InputSource::kChunks ^ (pair % 8);  // the 128-byte swizzle
          ptx::CopyAsync16(inputs + pair * kValuesPerScale + place * 16,
                           source.rows[i] + k * kValuesPerScale);
        }
      }
#pragma unroll
      for (int i = 0; i < kTilePairs / kWarpSize; ++i) {
        if (source.row_scales[i] != nullptr) {
          ptx::CopyAsync4(scales + (lane + kWarpSize * i) * 4, source.row_scales[i] + k);
        }
      }
      if (lane < 2) {
        ptx::CopyAsync4(scales + (kTilePairs + lane) * 4, source.weight_scales + k);
      }
      ptx::CopyAsyncArrive(ring.full + 8 * at.stage);
      at.Next(kStages);
    }
  }
}

// One warpgroup's 64 rows of both boxes over `blocks` stages.
template <int kTokens>
__device__ void Accumulate(const Ring& ring, Cursor& at, int blocks, int warpgroup, int lane,
                           float (&sum)[2][kTokens / 2]) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    sum[0][i] = 0.0F;
    sum[1][i] = 0.0F;
  }
  for (int k = 0; k < blocks; ++k) {
    const int stage = at.stage;
    ptx::BarrierWait(ring.full + 8 * stage, at.phase);
    ptx::AsyncProxyFence();  // rows of x were written by threads
    at.Next(kStages);
    const unsigned slab = ring.tiles + stage * kTileBytes + warpgroup * kSlabBytes;
    const unsigned inputs = ring.inputs + stage * kInputBytes;
    const unsigned scales_at = ring.scales + stage * kScaleBytes;
    const unsigned weight_scales_at = scales_at + kTilePairs * 4;
    float scales[kTokens / 4];
    float partial[kTokens / 2];
    BeginStage<kTokens>(slab, inputs, partial);
    float second[kTokens / 2];
    BeginStage<kTokens>(slab + kBoxBytes, inputs, second);
    LoadStageScales<kTokens>(scales_at, weight_scales_at, lane, scales);
    ptx::WgmmaWait<1>();
    AddStage<kTokens>(partial, scales, sum[0]);
    LoadStageScales<kTokens>(scales_at, weight_scales_at + 4, lane, scales);
    ptx::WgmmaWait<0>();
    AddStage<kTokens>(second, scales, sum[1]);
    __syncwarp();
    if (lane == 0) {
      ptx::BarrierArrive(ring.empty + 8 * stage);
    }
  }
}

// SwiGLU of gate (sum[0]) and up (sum[1]), quantized over the tile's 128 outputs.
template <int kTokens>
__device__ void StoreInner(const ExpertsParams& p, BlockShared& shared, const Work& work,
                           const Task& task, int warp, int lane, float (&sum)[2][kTokens / 2]) {
  const auto index = [](int c) { return c / 2 * 4 + c % 2; };  // two outputs of pair c of a lane
  const auto pair_of = [&](int c) { return c / 2 * 8 + 2 * (lane % 4) + c % 2; };
  ptx::NamedBarrierSync(kConsumersMeet, kConsumers);  // maxima and packed are free again
#pragma unroll
  for (int c = 0; c < kTokens / 4; ++c) {
    float amax = 0.0F;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = index(c) + 2 * half;
      const float value = Rounded<__nv_bfloat16>(
          SwiGluOf(Rounded<__nv_bfloat16>(sum[0][i]), Rounded<__nv_bfloat16>(sum[1][i])));
      sum[0][i] = value;
      amax = fmaxf(amax, fabsf(value));
    }
#pragma unroll
    for (int offset = 4; offset < kWarpSize; offset *= 2) {
      amax = fmaxf(amax, __shfl_xor_sync(kAllLanes, amax, offset));
    }
    if (lane < 4) {
      shared.maxima[warp][pair_of(c)] = amax;
    }
  }
  ptx::NamedBarrierSync(kConsumersMeet, kConsumers);
  const bool is_power = p.scale_format == ScaleFormat::kPowerOfTwo;
  const int column = work.Column(task.item);
#pragma unroll
  for (int c = 0; c < kTokens / 4; ++c) {
    const int pair = pair_of(c);
    float amax = 0.0F;
#pragma unroll
    for (int w = 0; w < kConsumerWarps; ++w) {
      amax = fmaxf(amax, shared.maxima[w][pair]);
    }
    const float scale = BlockScale(amax, p.scale_format);
    const float reciprocal = 1.0F / scale;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float value = sum[0][index(c) + 2 * half];
      shared.packed[pair][warp * 16 + lane / 4 + 8 * half] =
          ToFp8(is_power ? value * reciprocal : value / scale);
    }
    if (warp == 0 && lane < 4 && pair < task.count) {
      p.inner_scales[(task.first + pair) * std::int64_t{work.outer_blocks} + column] = scale;
    }
  }
  ptx::NamedBarrierSync(kConsumersMeet, kConsumers);
  constexpr int kChunks = kBoxRows / 16;
  for (int c = warp * kWarpSize + lane; c < task.count * kChunks; c += kConsumers) {
    *reinterpret_cast<uint4*>(p.inner + (task.first + c / kChunks) * std::int64_t{p.width} +
                              column * kBoxRows + c % kChunks * 16) =
        *reinterpret_cast<const uint4*>(&shared.packed[c / kChunks][c % kChunks * 16]);
  }
  Signal(p.counters.inner_done + work.Group(task.item), lane);
}

// An expert's output, rounded to Y.
template <int kTokens, typename Y>
__device__ void StoreOuter(const ExpertsParams& p, const Work& work, const Task& task, int warp,
                           int lane, const float (&sum)[2][kTokens / 2]) {
  const std::int64_t hidden = p.x.cols;
#pragma unroll
  for (int box = 0; box < 2; ++box) {
    const std::int64_t column =
        work.Column(task.item) * std::int64_t{kTileRows} + box * kBoxRows + warp * 16;
    if (column < hidden) {
      StoreSlab<kTokens>(
          sum[box], task.count, lane,
          [&](int pair) {
            return static_cast<Y*>(p.contributions) + (task.first + pair) * hidden + column;
          },
          Y{});
    }
  }
  Signal(p.counters.outer_done + work.Column(task.item), lane);
}

template <int kTokens, typename Y>
__device__ void RunTask(const ExpertsParams& p, BlockShared& shared, const Ring& ring,
                        const Work& work, const Task& task, Cursor& at, int warp, int lane) {
  float sum[2][kTokens / 2];
  Accumulate<kTokens>(ring, at, work.Blocks(task.item), warp / 4, lane, sum);
  if (work.IsInner(task.item)) {
    StoreInner<kTokens>(p, shared, work, task, warp, lane, sum);
  } else {
    StoreOuter<kTokens, Y>(p, work, task, warp, lane, sum);
  }
}

template <typename Y>
__device__ inline void Consume(const ExpertsParams& p, BlockShared& shared, const Ring& ring,
                               const Work& work, int warp, int lane) {
  Cursor at;
  Cursor turn;
  while (true) {
    const Task task = NextTask(shared, turn, lane);
    if (task.item >= work.items()) {
      return;
    }
    if (task.count <= 8) {
      RunTask<8, Y>(p, shared, ring, work, task, at, warp, lane);
    } else if (task.count <= 16) {
      RunTask<16, Y>(p, shared, ring, work, task, at, warp, lane);
    } else if (task.count <= 32) {
      RunTask<32, Y>(p, shared, ring, work, task, at, warp, lane);
    } else {
      RunTask<64, Y>(p, shared, ring, work, task, at, warp, lane);
    }
  }
}

// 16-byte aligned values that other blocks have written meanwhile.
template <typename Columns, typename Y>
__device__ inline void LoadFresh(const Y* from, Columns& to) {
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Columns) / sizeof(uint4)); ++i) {
    reinterpret_cast<uint4*>(&to)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
  }
}

// 256 columns of a token by one warp: its contributions in order, the shared expert's last.
template <typename Y>
__device__ inline void SumColumns(const ExpertsParams& p, int token, std::int64_t column,
                                  int lane) {
  constexpr int kWidth = 8;
  constexpr int kAtOnce = 9;  // of DeepSeek-V3: eight experts and the shared one
  using Columns = Pack<Y, kWidth>;
  constexpr int kLineLanes = 128 / static_cast<int>(sizeof(Columns));
  const int slots = p.choice.slots();
  const int own_place = lane < slots ? p.sorted.places[token * slots + lane] : -1;
  const float own_weight =
      lane < static_cast<int>(p.choice.experts.cols) ? p.weights.Row(token)[lane] : 1.0F;
  const bool has_columns = column < p.x.cols;
  Y* const contributions = static_cast<Y*>(p.contributions) + column;
  float sum[kWidth] = {};
  for (int first = 0; first < slots; first += kAtOnce) {
    Columns values[kAtOnce];
    int places[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      places[i] = __shfl_sync(kAllLanes, own_place, min(first + i, kWarpSize - 1));
      if (places[i] >= 0 && has_columns) {
        LoadFresh(contributions + places[i] * p.x.cols, values[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float weight = __shfl_sync(kAllLanes, own_weight, min(first + i, kWarpSize - 1));
      if (places[i] >= 0) {
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          sum[c] = __fadd_rn(sum[c], __fmul_rn(weight, ToFloat(values[i].values[c])));
        }
      }
    }
  }
  if (has_columns) {
    Columns rounded;
    if (p.shared != nullptr) {
      const auto shared =
          LoadPack<kWidth>(static_cast<const Y*>(p.shared) + token * p.shared_stride + column);
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        sum[c] += ToFloat(shared.values[c]);
      }
    }
#pragma unroll
    for (int c = 0; c < kWidth; ++c) {
      rounded.values[c] = FromFloat<Y>(sum[c]);
    }
    StorePack(static_cast<Y*>(p.y) + token * p.y_stride + column, rounded);
  }
  // Otherwise L2 would write them to memory: 2 % of an expert's bytes at 16 rows.
  __syncwarp();
  for (int slot = 0; slot < slots; ++slot) {
    const int place = __shfl_sync(kAllLanes, own_place, slot);
    if (place >= 0 && has_columns && lane % kLineLanes == 0) {
      ptx::DiscardLine(contributions + place * p.x.cols);
    }
  }
}

// A warp takes 256 columns of a token as soon as all experts have given theirs.
template <typename Y>
__device__ inline void Sum(const ExpertsParams& p, const Work& work, int lane) {
  const int tokens = static_cast<int>(p.x.rows);
  int ready = -1;
  while (true) {
    int item = 0;
    if (lane == 0) {
      item = atomicAdd(p.counters.sums_taken, 1);
    }
    item = __shfl_sync(kAllLanes, item, 0);
    const int tile = item / tokens;
    if (tile >= work.outer_tiles) {
      return;
    }
    if (tile != ready) {
      WaitUntil(p.counters.outer_done + tile, work.groups * kConsumerWarps, 200, lane);
      ready = tile;
    }
    SumColumns<Y>(p, item % tokens, tile * std::int64_t{kSumColumns} + lane * 8, lane);
  }
}

// Y: bfloat16, or float32 of a rank that leaves its part of the sum.
template <typename Y>
__global__ static void __launch_bounds__(kThreads, 1)
    ResidentExpertsKernel(const __grid_constant__ ExpertMaps maps,
                          const __grid_constant__ ExpertsParams p) {
  extern __shared__ std::uint8_t dynamic[];
  __shared__ __align__(16) BlockShared shared;
  const Ring ring(dynamic);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::BarrierInit(ring.full + 8 * stage, 1 + kWarpSize);
      ptx::BarrierInit(ring.empty + 8 * stage, kConsumerWarps);
    }
    for (int i = 0; i < kQueue; ++i) {
      ptx::BarrierInit(ptx::SharedAddress(shared.announced + i), 1);
      ptx::BarrierInit(ptx::SharedAddress(shared.taken + i), kInputWarps + kConsumerWarps);
    }
    ptx::BarrierInitFence();
    ptx::AsyncProxyFence();
  }
  __syncthreads();
  StartAfterPredecessors();
  // Both at once: the first tile's pairs, if there are so many.
  const int inner_tiles = p.width / kBoxRows;
  const PairTile group =
      p.sorted.tiles[min(static_cast<int>(blockIdx.x) / inner_tiles, p.tiles_max - 1)];
  const Work work(p, *p.sorted.tiles_used);
  if (warp >= kConsumerWarps) {
    ptx::LowerRegisters<kOtherRegisters>();
    if (warp == kWeightWarp) {
      if (lane == 0) {
        const int item = static_cast<int>(blockIdx.x);
        LoadWeights(
            maps, p, shared, ring, work,
            work.IsInner(item) || item >= work.items() ? group : p.sorted.tiles[work.Group(item)]);
      }
    } else if (warp <= kWeightWarp + kInputWarps) {
      LoadInput(p, shared, ring, work, warp - kWeightWarp - 1, lane);
    } else {
      Sum<Y>(p, work, lane);
    }
  } else {
    ptx::RaiseRegisters<kConsumerRegisters>();
    Consume<Y>(p, shared, ring, work, warp, lane);
    Sum<Y>(p, work, lane);
  }
}

// Of the device that the thread is bound to.
inline int Multiprocessors() {
  int device = 0;
  int count = 0;
  DSA_CUDA_CHECK(cudaGetDevice(&device));
  DSA_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// All blocks must be there at once: a block waits for tiles that others have taken.
template <typename Y>
void LaunchExperts(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream) {
  static PerDevice attribute;
  attribute.Once([] {
    return cudaFuncSetAttribute(ResidentExpertsKernel<Y>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  });
  LaunchDependent(ResidentExpertsKernel<Y>,
                  {.grid = static_cast<unsigned>(Multiprocessors()),
                   .threads = kThreads,
                   .shared_bytes = kSharedBytes},
                  stream, maps, params);
}

// Of float32: resident_expert_parts.cu.
void LaunchExpertParts(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream);

}  // namespace dsa::cuda::resident_experts
