// The experts of a layer in one resident launch: gate and up, SwiGLU, quantization, down, and the
// weighted sum with the shared expert last.  One block a multiprocessor, all there at once.
//
// Blocks take tiles from a counter, all inner tiles before the outer ones, so that nothing waits
// for a tile that has not begun.
//
//   inner tile   128 rows of gate and the same 128 of up, for up to 64 pairs of one expert.  A
//                thread holds both of one output, so SwiGLU, the maximum of 128 values and e4m3
//                happen in registers
//   part         an eighth of K of an inner tile of the shared expert, where that is computed with
//                the others: its tiles would else begin a second wave for a few blocks.  Parts come
//                first, and their weights, which no choice decides, before the kernels ahead have
//                ended; a block that finds no inner tile any more adds them in the order of K
//   outer tile   256 rows of down for the same pairs.  Its rows of x wait until the expert's inner
//                tiles are done, its weights do not.  Launches before this one may have computed
//                gate and up of the shared expert: then its activation is all that is waited for
//
//   warps 0-7    two warpgroups, 2 x 64 weight rows each, 8 to 64 pairs on the N side
//   warp 8       one thread: takes tiles, announces them, asks for weights by tensor map
//   warps 9, 10  rows of x and scales, stage by stage in turns, by cp.async
//   warp 11      activates what was given of the shared expert, if it was; then adds a token's
//   contributions, 256 columns at a time, as soon as all experts have
//                given theirs, while the others stream on; at the end warps 8 to 10 help
//
// A pair's bits depend on its row, its expert and the order of K alone.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/fp8_stage.cuh"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/resident_expert_work.cuh"
#include "kernels/cuda/swiglu.cuh"

#include <cstdint>

#include <cuda.h>

namespace dsa::cuda::resident_experts {

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

// Blocks [first, end) of K.
__device__ inline void StreamTile(const Boxes& boxes, const Ring& ring, Cursor& at, int first,
                                  int end, std::uint64_t policy) {
  for (int k = first; k < end; ++k) {
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

// The first weights of a block that begins with a part, which do not depend on the pairs.  One
// thread, before the kernels ahead have ended.
__device__ inline void LoadFirstPart(const ExpertMaps& maps, const ExpertsParams& p,
                                     const Ring& ring, Cursor& at) {
  const Work work(p, 1);
  const int item = static_cast<int>(blockIdx.x);
  if (work.IsPart(item)) {
    const int first = work.FirstBlock(item);
    StreamTile(Boxes(maps, p, true, p.choice.expert_count, work.Column(item)), ring, at, first,
               min(first + kStages, work.EndBlock(item)), ptx::EvictFirst());
  }
}

// One thread, behind LoadFirstPart.
__device__ inline void LoadWeights(const ExpertMaps& maps, const ExpertsParams& p,
                                   BlockShared& shared, const Ring& ring, const Work& work,
                                   PairTile group, Cursor at) {
  const std::uint64_t policy = ptx::EvictFirst();
  Cursor turn;
  int loaded = at.turn;
  for (int item = static_cast<int>(blockIdx.x);;) {
    ptx::BarrierWait(ptx::SharedAddress(shared.taken + turn.stage), turn.phase ^ 1U);
    const Task task = work.TaskOf(item, group);
    shared.queue[turn.stage] = task;
    ptx::BarrierArrive(ptx::SharedAddress(shared.announced + turn.stage));
    turn.Next(kQueue);
    if (task.kind == TaskKind::kNone) {
      return;
    }
    const Boxes boxes(maps, p, task.kind != TaskKind::kOuter, task.expert, task.column);
    const int first = task.first_block + loaded;
    const int end = task.end_block;
    // The next one is taken no earlier than it can come while the last stages stream: a block with
    // a long tile would else take one more before those with short ones have any.
    const int last = max(first, end - kStages);
    StreamTile(boxes, ring, at, first, last, policy);
    const int next = static_cast<int>(gridDim.x) + atomicAdd(p.counters.tiles_taken, 1);
    StreamTile(boxes, ring, at, last, end, policy);
    loaded = 0;
    item = next;
    group = item < work.items() ? p.sorted.tiles[work.Group(item)] : PairTile{};
  }
}

// Where a lane of the input warp reads: rows of x or of the inner activations, and scales.
template <bool kGiven>
struct InputSource {
  static constexpr int kChunks = kValuesPerScale / 16;
  static constexpr int kRowsAtOnce = kWarpSize / kChunks;
  static constexpr int kRows = kTilePairs / kRowsAtOnce;  // of a lane
  static constexpr int kScaleRows = kTilePairs / kWarpSize;
  // Of a lane's first column in each of its rows; of the first scale.  Offsets, since pointers of
  // 16 rows would not stay in registers.
  const Fp8E4m3* values;
  const float* scales;
  unsigned rows[kRows];
  unsigned row_scales[kScaleRows];
  int count;                   // of pairs
  const float* weight_scales;  // of lanes 0 and 1

  __device__ static int PairOf(int i, int lane) { return lane / kChunks + kRowsAtOnce * i; }

  __device__ InputSource(const ExpertsParams& p, const Task& task, int lane) : count(task.count) {
    const int kind = task.expert == p.choice.expert_count ? kShared : kRouted;
    const bool is_inner = task.kind != TaskKind::kOuter;
    const bool is_given = kGiven && !is_inner && kind == kShared;
    const int inner_blocks = static_cast<int>(p.x.cols) / kValuesPerScale;  // of K
    const int outer_blocks = p.width / kValuesPerScale;
    // Rows of x and what was given are those of tokens, the others those of sorted pairs.
    const auto row_of = [&](int pair) {
      return is_inner || is_given ? p.sorted.tokens[task.first + pair] : task.first + pair;
    };
    Matrix<const Fp8E4m3> values_of = {.data = p.inner, .row_stride = p.width};
    Matrix<const float> scales_of = {.data = p.inner_scales, .row_stride = outer_blocks};
    if (is_inner) {
      values_of = p.x;
      scales_of = p.x_scales;
    } else if (is_given) {
      values_of = {.data = p.given.y.values.data, .row_stride = p.given.y.values.row_stride};
      scales_of = {.data = p.given.y.scales.data, .row_stride = p.given.y.scales.row_stride};
    }
    values = values_of.data + lane % kChunks * 16;
    scales = scales_of.data;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int pair = PairOf(i, lane);
      rows[i] = pair < count ? row_of(pair) * static_cast<unsigned>(values_of.row_stride) : 0;
    }
#pragma unroll
    for (int i = 0; i < kScaleRows; ++i) {
      const int pair = lane + kWarpSize * i;
      row_scales[i] = pair < count ? row_of(pair) * static_cast<unsigned>(scales_of.row_stride) : 0;
    }
    const int own = kind == kShared ? 0 : task.expert;
    if (is_inner) {
      const Matrix<const float>& scales = lane == 0 ? p.scales[kind].gate : p.scales[kind].up;
      weight_scales = scales.Row(own * outer_blocks + task.column);
    } else {
      // The last tile may have one box only.
      const int box = min(2 * task.column + lane % 2, inner_blocks - 1);
      weight_scales = p.scales[kind].down.Row(own * inner_blocks + box);
    }
  }
};

template <bool kGiven>
__device__ void LoadInput(const ExpertsParams& p, BlockShared& shared, const Ring& ring,
                          int input_warp, int lane) {
  Cursor at;
  Cursor turn;
  while (true) {
    const Task task = NextTask(shared, turn, lane);
    if (task.kind == TaskKind::kNone) {
      return;
    }
    using Source = InputSource<kGiven>;
    const Source source(p, task, lane);
    if (task.kind == TaskKind::kOuter) {
      const bool is_given = kGiven && task.expert == p.choice.expert_count;
      const int warps = is_given ? static_cast<int>(gridDim.x)  // that activate
                                 : p.width / kBoxRows * kConsumerWarps;
      WaitUntil(p.counters.inner_done + task.group, warps, 64, lane);
    }
    for (int k = task.first_block; k < task.end_block; ++k) {
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
      for (int i = 0; i < Source::kRows; ++i) {
        const int pair = Source::PairOf(i, lane);
        if (pair < source.count) {
          const int place = lane % Source::kChunks ^ (pair % 8);  // the 128-byte swizzle
          ptx::CopyAsync16(inputs + pair * kValuesPerScale + place * 16,
                           source.values + source.rows[i] + k * kValuesPerScale);
        }
      }
#pragma unroll
      for (int i = 0; i < Source::kScaleRows; ++i) {
        const int pair = lane + kWarpSize * i;
        if (pair < source.count) {
          ptx::CopyAsync4(scales + pair * 4, source.scales + source.row_scales[i] + k);
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

// This block's share of the activation of what was given.  One warp.
__device__ inline void ActivateGiven(const ExpertsParams& p, const Work& work, int lane) {
  constexpr int kTasks = kWarpSize / kQuantizeLanes;
  for (std::int64_t first = blockIdx.x * kTasks; first < p.given.tasks();
       first += gridDim.x * kTasks) {
    ActivateBlock<__nv_bfloat16>(p.given, first + lane / kQuantizeLanes);
  }
  Signal(p.counters.inner_done + work.groups - 1, lane);
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

// Where a thread's sums of part 0 of a tile lie, as float4 with a stride of a warp.
template <int kTokens>
__device__ float4* PartSums(const ExpertsParams& p, int column, int warp, int lane) {
  constexpr int kPacks = kTokens / 4;  // of a thread
  return p.part_sums + column * (kParts * kPartPacks) + warp * (kPacks * kWarpSize) + lane;
}

template <int kTokens>
__device__ void StorePart(const ExpertsParams& p, const Task& task, int warp, int lane,
                          const float (&sum)[2][kTokens / 2]) {
  constexpr int kPacks = kTokens / 8;  // of a box
  float4* const own = PartSums<kTokens>(p, task.column, warp, lane) + task.part * kPartPacks;
#pragma unroll
  for (int i = 0; i < 2 * kPacks; ++i) {
    const float* const values = &sum[i / kPacks][i % kPacks * 4];
    own[i * kWarpSize] = make_float4(values[0], values[1], values[2], values[3]);
  }
  Signal(p.counters.parts_done + task.column, lane);
}

// The sums over all parts of a tile, in the order of K.
template <int kTokens>
__device__ void AddParts(const ExpertsParams& p, const Task& task, int warp, int lane,
                         float (&sum)[2][kTokens / 2]) {
  constexpr int kPacks = kTokens / 8;  // of a box
  constexpr int kAtOnce = 2;           // packs whose parts are under way
  const float4* const all = PartSums<kTokens>(p, task.column, warp, lane);
  WaitUntil(p.counters.parts_done + task.column, kParts * kConsumerWarps, 64, lane);
#pragma unroll
  for (int first = 0; first < 2 * kPacks; first += kAtOnce) {
    float4 parts[kAtOnce][kParts];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        parts[i][part] = __ldcg(all + part * kPartPacks + (first + i) * kWarpSize);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      float* const values = &sum[(first + i) / kPacks][(first + i) % kPacks * 4];
      values[0] = values[1] = values[2] = values[3] = 0.0F;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        values[0] += parts[i][part].x;
        values[1] += parts[i][part].y;
        values[2] += parts[i][part].z;
        values[3] += parts[i][part].w;
      }
    }
  }
}

// SwiGLU of gate (sum[0]) and up (sum[1]), quantized over the tile's 128 outputs.
template <int kTokens>
__device__ void StoreInner(const ExpertsParams& p, BlockShared& shared, const Task& task, int warp,
                           int lane, float (&sum)[2][kTokens / 2]) {
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
  const std::int64_t blocks = p.width / kValuesPerScale;
#pragma unroll
  for (int c = 0; c < kTokens / 4; ++c) {
    const int pair = pair_of(c);
    float amax = 0.0F;
#pragma unroll
    for (int w = 0; w < kConsumerWarps; ++w) {
      amax = fmaxf(amax, shared.maxima[w][pair]);
    }
    const float scale = BlockScale(amax, p.scale_format);
    const ScaleDivisor divided(scale, p.scale_format);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float value = sum[0][index(c) + 2 * half];
      shared.packed[pair][warp * 16 + lane / 4 + 8 * half] = ToFp8(divided(value));
    }
    if (warp == 0 && lane < 4 && pair < task.stored) {
      p.inner_scales[(task.first + pair) * blocks + task.column] = scale;
    }
  }
  ptx::NamedBarrierSync(kConsumersMeet, kConsumers);
  constexpr int kChunks = kBoxRows / 16;
  for (int c = warp * kWarpSize + lane; c < task.stored * kChunks; c += kConsumers) {
    *reinterpret_cast<uint4*>(p.inner + (task.first + c / kChunks) * std::int64_t{p.width} +
                              task.column * kBoxRows + c % kChunks * 16) =
        *reinterpret_cast<const uint4*>(&shared.packed[c / kChunks][c % kChunks * 16]);
  }
  if (task.stored > 0) {
    Signal(p.counters.inner_done + task.group, lane);
  }
}

// An expert's output, rounded to Y.  kLeaves: by pair, and nobody adds it up.
template <int kTokens, typename Y, bool kLeaves>
__device__ void StoreOuter(const ExpertsParams& p, const Task& task, int warp, int lane,
                           const float (&sum)[2][kTokens / 2]) {
  const std::int64_t hidden = p.x.cols;
#pragma unroll
  for (int box = 0; box < 2; ++box) {
    const std::int64_t column = task.column * std::int64_t{kTileRows} + box * kBoxRows + warp * 16;
    if (column < hidden) {
      StoreSlab<kTokens>(
          sum[box], task.stored, lane,
          [&](int pair) {
            const int place = task.first + pair;
            const int row = kLeaves ? p.sorted.pairs[place] : place;
            return static_cast<Y*>(p.contributions) + row * hidden + column;
          },
          Y{});
    }
  }
  if (!kLeaves && task.stored > 0) {
    Signal(p.counters.outer_done + task.column, lane);
  }
}

template <int kTokens, typename Y, bool kLeaves>
__device__ void RunTask(const ExpertsParams& p, BlockShared& shared, const Ring& ring,
                        const Task& task, Cursor& at, int warp, int lane) {
  float sum[2][kTokens / 2];
  if (task.kind == TaskKind::kMerge) {
    AddParts<kTokens>(p, task, warp, lane, sum);
  } else {
    Accumulate<kTokens>(ring, at, task.end_block - task.first_block, warp / 4, lane, sum);
  }
  if (task.kind == TaskKind::kPart) {
    StorePart<kTokens>(p, task, warp, lane, sum);
  } else if (task.kind == TaskKind::kOuter) {
    StoreOuter<kTokens, Y, kLeaves>(p, task, warp, lane, sum);
  } else {
    StoreInner<kTokens>(p, shared, task, warp, lane, sum);
  }
}

// What runs first, while the gate still chooses: the ends of an inner and of an outer tile, of
// which nothing is stored, so that their instructions are in the caches, as they run once per tile,
// and all wait for them, while the memory system is busy with weights.
__device__ inline Task RehearsalOf(const ExpertsParams& p, int index) {
  const int tokens = static_cast<int>(p.x.rows);
  const int mean = tokens * static_cast<int>(p.choice.experts.cols) / p.choice.expert_count;
  return {.kind = index == 0 ? TaskKind::kInner : TaskKind::kOuter,
          .count = min(min(max(mean, 1), tokens), kTilePairs)};
}

// Waits for the kernels ahead, behind the rehearsals.
template <typename Y, bool kLeaves>
__device__ inline void Consume(const ExpertsParams& p, BlockShared& shared, const Ring& ring,
                               int warp, int lane) {
  constexpr int kRehearsals = 2;
  Cursor at;
  Cursor turn;
  for (int index = 0;; ++index) {
    if (index == kRehearsals) {
      ptx::WaitForPredecessors();
    }
    const Task task = index < kRehearsals ? RehearsalOf(p, index) : NextTask(shared, turn, lane);
    if (task.kind == TaskKind::kNone) {
      return;
    }
    if (task.count <= 8) {
      RunTask<8, Y, kLeaves>(p, shared, ring, task, at, warp, lane);
    } else if (task.count <= 16) {
      RunTask<16, Y, kLeaves>(p, shared, ring, task, at, warp, lane);
    } else if (task.count <= 32) {
      RunTask<32, Y, kLeaves>(p, shared, ring, task, at, warp, lane);
    } else {
      RunTask<64, Y, kLeaves>(p, shared, ring, task, at, warp, lane);
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

// A token's slots, one a lane.
struct TokenSlots {
  int place;
  float weight;
  __device__ TokenSlots(const ExpertsParams& p, int token, int lane)
      : place(lane < p.choice.slots() ? p.sorted.places[token * p.choice.slots() + lane] : -1),
        weight(lane < static_cast<int>(p.choice.experts.cols) ? p.weights.Row(token)[lane] : 1.0F) {
  }
};

// 256 columns of a token by one warp: its contributions in order, the shared expert's last.
template <typename Y>
__device__ inline void SumColumns(const ExpertsParams& p, int token, const TokenSlots& own,
                                  std::int64_t column, int lane) {
  constexpr int kWidth = 8;
  constexpr int kAtOnce = 9;  // of DeepSeek-V3: eight experts and the shared one
  using Columns = Pack<Y, kWidth>;
  constexpr int kLineLanes = 128 / static_cast<int>(sizeof(Columns));
  const int slots = p.choice.slots();
  const bool has_columns = column < p.x.cols;
  Y* const contributions = static_cast<Y*>(p.contributions) + column;
  float sum[kWidth] = {};
  for (int first = 0; first < slots; first += kAtOnce) {
    Columns values[kAtOnce];
    int places[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      places[i] = __shfl_sync(kAllLanes, own.place, min(first + i, kWarpSize - 1));
      if (places[i] >= 0 && has_columns) {
        LoadFresh(contributions + places[i] * p.x.cols, values[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float weight = __shfl_sync(kAllLanes, own.weight, min(first + i, kWarpSize - 1));
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
    const int place = __shfl_sync(kAllLanes, own.place, slot);
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
    const TokenSlots slots(p, item % tokens, lane);
    if (tile != ready) {
      WaitUntil(p.counters.outer_done + tile, work.groups * kConsumerWarps, 200, lane);
      ready = tile;
    }
    SumColumns<Y>(p, item % tokens, slots, tile * std::int64_t{kSumColumns} + lane * 8, lane);
  }
}

// Y: bfloat16, or float32 of a rank that leaves its part of the sum.  kGiven: gate and up of the
// shared expert are there.  kLeaves: contributions are left by pair.
template <typename Y, bool kGiven, bool kLeaves>
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
  ptx::AllowSuccessor();
  if (warp >= kConsumerWarps) {
    ptx::LowerRegisters<kOtherRegisters>();
    Cursor loaded;
    if (warp == kWeightWarp && lane == 0) {
      LoadFirstPart(maps, p, ring, loaded);
    }
    ptx::WaitForPredecessors();
    // Both at once: the first tile's pairs, if there are so many.
    const int item = static_cast<int>(blockIdx.x);
    const Work least(p, 1);
    const PairTile group =
        p.sorted.tiles[min(max(item - least.first_whole, 0) / least.inner_tiles, p.tiles_max - 1)];
    const Work work(p, *p.sorted.tiles_used);
    if (warp == kWeightWarp) {
      if (lane == 0) {
        const bool is_first_group = item >= work.items() || work.IsWhole(item);
        LoadWeights(maps, p, shared, ring, work,
                    is_first_group ? group : p.sorted.tiles[work.Group(item)], loaded);
      }
    } else if (warp < kSumWarp) {
      LoadInput<kGiven>(p, shared, ring, warp - kWeightWarp - 1, lane);
    } else if constexpr (kGiven) {
      ActivateGiven(p, work, lane);
    }
    __syncwarp();
    if constexpr (!kLeaves) {
      Sum<Y>(p, work, lane);
    }
  } else {
    ptx::RaiseRegisters<kConsumerRegisters>();
    Consume<Y, kLeaves>(p, shared, ring, warp, lane);
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
template <typename Y, bool kGiven, bool kLeaves = false>
void LaunchExperts(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream) {
  static PerDevice attribute;
  attribute.Once([] {
    return cudaFuncSetAttribute(ResidentExpertsKernel<Y, kGiven, kLeaves>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  });
  LaunchDependent(ResidentExpertsKernel<Y, kGiven, kLeaves>,
                  {.grid = static_cast<unsigned>(Multiprocessors()),
                   .threads = kThreads,
                   .shared_bytes = kSharedBytes},
                  stream, maps, params);
}

// That leaves what experts give, bfloat16: resident_expert_pairs.cu.
void LaunchExpertPairs(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream);
// Of float32: resident_expert_parts.cu.
void LaunchExpertParts(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream);
// Where gate and up of the shared expert are given, y of either type: resident_expert_given.cu.
void LaunchGivenExperts(const ExpertMaps& maps, const ExpertsParams& params, DataType y,
                        cudaStream_t stream);

}  // namespace dsa::cuda::resident_experts
