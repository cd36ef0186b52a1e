// The experts of a layer in one resident launch: gate and up, SwiGLU, quantization, down, and the
// weighted sum with the shared expert last.  One block a multiprocessor, all there at once.
//
// Blocks take tiles from a counter, all inner tiles before the outer ones, so that nothing waits
// for a tile that has not begun.
//
//   inner tile   128 rows of gate and the same 128 of up, for up to 64 pairs of one expert.  A
//                thread holds both of one output, so SwiGLU, the maximum of 128 values and e4m3
//                happen in registers
//   part         an eighth of K of an inner tile of the shared expert, for all rows: up to 16 rows,
//                where its tiles would else begin a second wave for a few blocks.  Parts come
//                first, one a block, and wait for neither gate nor sort: their weights for nothing,
//                rows of x until the gate's launch says that the kernels ahead of it have ended.
//                Behind its part a block has its next tile without asking, and asks for the first
//                stages of it by the guess that all experts are hit
//   outer tile   256 rows of down for the same pairs.  Its rows of x wait until the expert's inner
//                tiles are done, its weights do not.  Launches before this one may have computed
//                gate and up of the shared expert: then its activation is all that is waited for
//
//   pairs of blocks   where gate and up of the shared expert are given, so from 17 rows on: two
//                blocks take the same tiles and compute half of the weight rows each
//                (resident_expert_shares.cuh).  Inner tiles of eight experts are two waves of tiles
//                of half the time then, and while one wave ends, weights of the next stream; outer
//                tiles begin with those of experts whose inner tiles were in the first.
//
//   warps 0-7    two warpgroups, 2 x 64 weight rows each, 8 to 64 pairs on the N side
//   warp 8       one thread: takes tiles, announces them, asks for weights by tensor map
//   warps 9, 10  rows of x and scales, stage by stage in turns, by cp.async
//   warp 11      adds the parts of the shared expert in the order of K and activates them, or
//                activates what was given of it; then adds a token's
//                contributions, 256 columns at a time, as soon as all experts have given theirs,
//                while the others stream on; at the end all warps help
// In pairs of blocks:
//   warps 0-7    two warpgroups, 64 weight rows each on the N side, 64 pairs on the M side
//   warps 9-12   rows of x, whose stages come twice as often
//   warp 13      activates and adds, as warp 11
//   warps 14, 15 store what consumers leave in shared memory, and announce it
//
// A pair's bits depend on its row, its expert and the order of K alone.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/fp8_stage.cuh"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/ptx/copy_box.cuh"
#include "kernels/cuda/ptx/peer_block.cuh"
#include "kernels/cuda/resident_expert_input.cuh"
#include "kernels/cuda/resident_expert_shares.cuh"
#include "kernels/cuda/resident_expert_split.cuh"
#include "kernels/cuda/resident_expert_sums.cuh"
#include "kernels/cuda/resident_expert_work.cuh"
#include "kernels/cuda/swiglu.cuh"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <utility>

#include <cuda.h>

namespace dsa::cuda::resident_experts {

// The copies that bring a stage of a tile: maps and their first rows.
template <bool kPaired>
struct Boxes;
template <>
struct Boxes<false> {
  using L = Layout<false>;
  const CUtensorMap* maps[L::kCopies];
  int rows[L::kCopies];
  __device__ Boxes(const ExpertMaps& maps_of, const ExpertsParams& p, bool is_inner, int expert,
                   int column) {
    const int kind = expert == p.choice.expert_count ? kShared : kRouted;
    const int own = kind == kShared ? 0 : expert;
    maps[0] = is_inner ? &maps_of.gate[kind] : &maps_of.down[kind];
    maps[1] = is_inner ? &maps_of.up[kind] : maps[0];
    const int first = is_inner ? own * p.width + column * kBoxRows
                               : own * static_cast<int>(p.x.cols) + column * kTileRows;
#pragma unroll
    for (int i = 0; i < L::kCopies; ++i) {
      rows[i] = first + (is_inner ? 0 : i * L::kCopyRows);
    }
  }
  __device__ void Copy(unsigned target, unsigned full, int k, std::uint64_t policy) const {
#pragma unroll
    for (int i = 0; i < L::kCopies; ++i) {
      ptx::CopyBox(target + i * L::kCopyBytes, maps[i], full, k * kValuesPerScale, rows[i], policy);
    }
  }
};
// This block's half of it, in one copy, as one thread asks for all and a stage comes each half
// microsecond.
template <>
struct Boxes<true> {
  const CUtensorMap* map;
  bool is_inner;
  int row;
  __device__ Boxes(const ExpertMaps& maps, const ExpertsParams& p, bool is_inner, int expert,
                   int column)
      : is_inner(is_inner) {
    const int kind = expert == p.choice.expert_count ? kShared : kRouted;
    const int own = kind == kShared ? 0 : expert;
    const int rank = static_cast<int>(ptx::ClusterRank());
    map = is_inner ? &maps.gate[kind] : &maps.down[kind];
    row = is_inner
              ? (own * p.width + column * kBoxRows + rank * Layout<true>::kOutputs) / kShareRows
              : own * static_cast<int>(p.x.cols) + column * kTileRows + rank * kBoxRows;
  }
  __device__ void Copy(unsigned target, unsigned full, int k, std::uint64_t policy) const {
    if (is_inner) {
      ptx::CopyBox(target, *map, full, ptx::At4{k * kValuesPerScale, 0, 0, row}, policy);
    } else {
      ptx::CopyBox(target, map, full, k * kValuesPerScale, row, policy);
    }
  }
};

// Blocks [first, end) of K.
template <bool kPaired>
__device__ inline void StreamTile(const Boxes<kPaired>& boxes, const Ring<kPaired>& ring,
                                  Cursor& at, int first, int end, std::uint64_t policy) {
  constexpr int kUnrolled = kPaired ? 1 : 4;
#pragma unroll kUnrolled
  for (int k = first; k < end; ++k) {
    if (at.turn >= ring.kStages) {
      ptx::BarrierWait(ring.empty + 8 * at.stage, at.phase ^ 1U);
    }
    const unsigned full = ring.full + 8 * at.stage;
    ptx::BarrierExpect(full, ring.kTileBytes);
    boxes.Copy(ring.tiles + at.stage * ring.kTileBytes, full, k, policy);
    at.Next(ring.kStages);
  }
}

// The tiles that a block takes without asking: the first, and where that is a part, of which all
// blocks have one, the next, so that its weights may be asked for by a guess.
template <Inner kInner>
constexpr int kOwnTiles = kInner == Inner::kParts ? 2 : 1;

// What a block asked for before the gate has chosen.
struct Guess {
  int expert = -1;
  int column = 0;
  int stages = 0;
};

// A block's part, and the first stages of the tile behind it, before the kernels ahead have ended:
// neither depends on the pairs.
__device__ inline Guess LoadPart(const ExpertMaps& maps, const ExpertsParams& p,
                                 BlockShared<false>& shared, const Ring<false>& ring,
                                 const Work& least, Cursor& at, Cursor& turn) {
  const std::uint64_t policy = ptx::EvictFirst();
  const int item = static_cast<int>(blockIdx.x);
  const Task task = least.PartOf(item, p);
  shared.queue[turn.stage] = task;
  ptx::BarrierArrive(ptx::SharedAddress(shared.announced + turn.stage));
  turn.Next(kQueue);
  StreamTile<false>(Boxes<false>(maps, p, true, task.expert, task.column), ring, at,
                    task.first_block, task.end_block, policy);
  const int whole = item + static_cast<int>(gridDim.x) - least.first_whole;
  Guess guess{.expert = whole / least.inner_tiles, .column = whole % least.inner_tiles};
  if (p.guesses_hit && whole >= 0 && guess.expert < p.choice.expert_count) {
    guess.stages = min(kGuessedStages, least.inner_blocks);
    StreamTile<false>(Boxes<false>(maps, p, true, guess.expert, guess.column), ring, at, 0,
                      guess.stages, policy);
  }
  return guess;
}

// One thread; waits for the kernels ahead, or until the pairs are sorted: what pairs of blocks read
// before they wait was there before that, and what they write by then nobody reads any more.
template <Inner kInner, bool kPaired>
__device__ inline void LoadWeights(const ExpertMaps& maps, const ExpertsParams& p,
                                   BlockShared<kPaired>& shared, Ring<kPaired> ring) {
  if constexpr (kPaired) {
    ring.Hold();
    ptx::PrefetchMap(maps.gate[kRouted]);
    ptx::PrefetchMap(maps.down[kRouted]);
    ptx::PrefetchMap(maps.down[kShared]);
  }
  constexpr int kBlocks = kPaired ? 2 : 1;
  const bool takes = !kPaired || ptx::ClusterRank() == 0;
  const std::uint64_t policy = ptx::EvictFirst();
  const int takers = static_cast<int>(gridDim.x) / kBlocks;
  const Work least(p, 1);
  Cursor at;
  Cursor turn;
  Cursor mail;
  Guess guess;
  int item = static_cast<int>(blockIdx.x) / kBlocks;
  int own = kOwnTiles<kInner> - 1;  // tiles that follow without asking
  if constexpr (kInner == Inner::kParts) {
    if (least.IsPart(item)) {
      guess = LoadPart(maps, p, shared, ring, least, at, turn);
      item += takers;
      --own;
    }
  }
  if constexpr (kPaired) {
    WaitToGoOn(p.counters, 32);
  } else {
    ptx::WaitForPredecessors();
  }
  // Both at once: the first tile's pairs, if there are so many.
  PairTile group =
      p.sorted.tiles[min(max(item - least.first_whole, 0) / least.inner_tiles, p.tiles_max - 1)];
  Work work(p, *p.sorted.tiles_used);
  if constexpr (kPaired) {
    work.OrderOuter(takers);
  }
  if (item < work.items() && !work.IsWhole(item)) {
    group = p.sorted.tiles[work.Group(item)];
  }
  bool is_first = true;
  while (true) {
    Task task = work.TaskOf(item, group);
    if constexpr (kInner == Inner::kParts) {
      if (work.IsPart(item)) {
        task = work.PartOf(item, p);
      }
      const bool is_guessed = task.kind == TaskKind::kInner && task.expert == guess.expert &&
                              task.column == guess.column;
      if (guess.stages > 0 && !is_guessed) {
        ptx::BarrierWait(ptx::SharedAddress(shared.taken + turn.stage), turn.phase ^ 1U);
        shared.queue[turn.stage] = {.kind = TaskKind::kSkipped,
                                    .column = guess.column,
                                    .part = 0,
                                    .group = 0,
                                    .expert = guess.expert,
                                    .first = 0,
                                    .count = 0,
                                    .stored = 0,
                                    .first_block = 0,
                                    .end_block = guess.stages};
        ptx::BarrierArrive(ptx::SharedAddress(shared.announced + turn.stage));
        turn.Next(kQueue);
        guess.stages = 0;
      }
    }
    ptx::BarrierWait(ptx::SharedAddress(shared.taken + turn.stage), turn.phase ^ 1U);
    shared.queue[turn.stage] = task;
    ptx::BarrierArrive(ptx::SharedAddress(shared.announced + turn.stage));
    turn.Next(kQueue);
    if (task.kind == TaskKind::kNone) {
      break;
    }
    const Boxes<kPaired> boxes(maps, p, task.kind != TaskKind::kOuter, task.expert, task.column);
    const int first = task.first_block + guess.stages;
    const int end = task.end_block;
    guess.stages = 0;
    const int last = max(first, end - kTakenAhead<kPaired>);
    int begun = first;
    if (kPaired && is_first && task.kind == TaskKind::kInner && last - first > kFirstWeights) {
      begun = first + kFirstWeights;
      StreamTile<kPaired>(boxes, ring, at, first, begun, policy);
      ptx::BarrierWait(ptx::SharedAddress(&shared.inputs_asked), 0);
    }
    is_first = false;
    StreamTile<kPaired>(boxes, ring, at, begun, last, policy);
    int next = 0;
    if (own > 0) {
      --own;
      next = item + takers;
    } else if (takes) {
      next = kOwnTiles<kInner> * takers + atomicAdd(p.counters.tiles_taken, 1);
    }
    const int sent = max(last, end - kSentAhead<kPaired>);
    StreamTile<kPaired>(boxes, ring, at, last, sent, policy);
    if (takes) {
      group = next < work.items() ? p.sorted.tiles[work.Group(next)] : PairTile{};
      if constexpr (kPaired) {
        ptx::BarrierWait(ptx::SharedAddress(shared.mail_read + mail.stage), mail.phase ^ 1U);
        ptx::StoreWords4InBlock(
            ptx::AddressInBlock(ptx::SharedAddress(shared.mail + mail.stage), 1),
            make_uint4(next, group.expert, group.first, group.count),
            ptx::AddressInBlock(ptx::SharedAddress(shared.mail_there + mail.stage), 1));
        mail.Next(kMail);
      }
    }
    StreamTile<kPaired>(boxes, ring, at, sent, end, policy);
    if (!takes) {
      const unsigned there = ptx::SharedAddress(shared.mail_there + mail.stage);
      ptx::BarrierExpect(there, sizeof(uint4));
      ptx::BarrierWait(there, mail.phase);
      const uint4 sent_item = ptx::LoadWords4(ptx::SharedAddress(shared.mail + mail.stage));
      next = static_cast<int>(sent_item.x);
      group = {.expert = static_cast<int>(sent_item.y),
               .first = static_cast<int>(sent_item.z),
               .count = static_cast<int>(sent_item.w)};
      ptx::BarrierArriveInBlock(
          ptx::AddressInBlock(ptx::SharedAddress(shared.mail_read + mail.stage), 0));
      mail.Next(kMail);
    }
    item = next;
  }
  if constexpr (kInner != Inner::kWhole) {  // until all blocks know that they may go on
    while (LoadAcquire(reinterpret_cast<const int*>(p.counters.rows_ready)) != 0) {
      __nanosleep(64);
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
__device__ void Accumulate(const Ring<false>& ring, Cursor& at, int blocks, int warpgroup, int lane,
                           float (&sum)[2][kTokens / 2]) {
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    sum[0][i] = 0.0F;
    sum[1][i] = 0.0F;
  }
  for (int block = 0; block < blocks; ++block) {
    ptx::BarrierWait(ring.full + 8 * at.stage, at.phase);
    ptx::AsyncProxyFence();  // rows of x were written by threads
    const unsigned slab = ring.tiles + at.stage * ring.kTileBytes + warpgroup * kSlabBytes;
    const unsigned inputs = ring.inputs + at.stage * ring.kInputBytes;
    const unsigned scales_at = ring.scales + at.stage * ring.kScaleBytes;
    const unsigned weight_scales_at = scales_at + kTilePairs * 4;
    float partial[2][kTokens / 2];
    float scales[kTokens / 4];
    BeginStage<kTokens>(slab, inputs, partial[0]);
    BeginStage<kTokens>(slab + ring.kCopyBytes, inputs, partial[1]);
    LoadStageScales<kTokens>(scales_at, weight_scales_at, lane, scales);
    ptx::WgmmaWait<1>();
    AddStage<kTokens>(partial[0], scales, sum[0]);
    LoadStageScales<kTokens>(scales_at, weight_scales_at + 4, lane, scales);
    ptx::WgmmaWait<0>();
    AddStage<kTokens>(partial[1], scales, sum[1]);
    __syncwarp();
    if (lane == 0) {
      ptx::BarrierArrive(ring.empty + 8 * at.stage);
    }
    at.Next(ring.kStages);
  }
}

// SwiGLU of gate (sum[0]) and up (sum[1]), quantized over the tile's 128 outputs.
template <int kTokens>
__device__ void StoreInner(const ExpertsParams& p, BlockShared<false>& shared, const Task& task,
                           int warp, int lane, float (&sum)[2][kTokens / 2]) {
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
  if (task.group >= 0) {
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
  if (!kLeaves && task.group >= 0) {
    Signal(p.counters.outer_done + task.column, lane);
  }
}

template <int kTokens, typename Y, Inner kInner, bool kLeaves>
__device__ void RunTask(const ExpertsParams& p, BlockShared<false>& shared, const Ring<false>& ring,
                        const Task& task, Cursor& at, int warp, int lane) {
  float sum[2][kTokens / 2];
  Accumulate<kTokens>(ring, at, task.end_block - task.first_block, warp / 4, lane, sum);
  if (task.kind == TaskKind::kOuter) {
    StoreOuter<kTokens, Y, kLeaves>(p, task, warp, lane, sum);
  } else if (kInner != Inner::kParts || task.kind == TaskKind::kInner) {
    StoreInner<kTokens>(p, shared, task, warp, lane, sum);
  } else if (task.kind == TaskKind::kPart) {
    StorePart<kTokens>(p, task, warp, lane, sum);
  }
}

// Waits for the kernels ahead, behind the rehearsals; in pairs of blocks for its first tile alone.
template <typename Y, Inner kInner, bool kLeaves, bool kPaired>
__device__ inline void Consume(const ExpertsParams& p, BlockShared<kPaired>& shared,
                               const Ring<kPaired>& ring, int warp, int lane) {
  Cursor at;
  Ends ends;
  Cursor turn;
  for (int index = 0;; ++index) {
    const Task task = index < kRehearsals ? RehearsalOf(p, index) : NextTask(shared, turn, lane);
    if (!kPaired && index >= kRehearsals && task.kind != TaskKind::kPart) {
      ptx::WaitForPredecessors();
    }
    if (task.kind == TaskKind::kNone) {
      return;
    }
    if constexpr (kPaired) {
      RunShare<Y>(p, shared, ring, task, at, ends, warp, lane);
    } else if (task.count <= 8) {
      RunTask<8, Y, kInner, kLeaves>(p, shared, ring, task, at, warp, lane);
    } else if (task.count <= 16) {
      RunTask<16, Y, kInner, kLeaves>(p, shared, ring, task, at, warp, lane);
    } else if (task.count <= 32) {
      RunTask<32, Y, kInner, kLeaves>(p, shared, ring, task, at, warp, lane);
    } else {
      RunTask<64, Y, kInner, kLeaves>(p, shared, ring, task, at, warp, lane);
    }
  }
}

// Y: bfloat16, or float32 of a rank that leaves its part of the sum.  kGiven: gate and up of the
// shared expert are there.  kLeaves: contributions are left by pair.
template <typename Y, Inner kInner, bool kLeaves>
__global__ static void __launch_bounds__(Layout<kInner == Inner::kGiven>::kThreads, 1)
    ResidentExpertsKernel(const __grid_constant__ ExpertMaps maps,
                          const __grid_constant__ ExpertsParams p) {
  extern __shared__ std::uint8_t dynamic[];
  constexpr bool kPaired = kInner == Inner::kGiven;
  using L = Layout<kPaired>;
  __shared__ __align__(16) BlockShared<kPaired> shared;
  const Ring<kPaired> ring(dynamic);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < ring.kStages; ++stage) {
      ptx::BarrierInit(ring.full + 8 * stage, 1 + kWarpSize);
      ptx::BarrierInit(ring.empty + 8 * stage, kConsumerWarps);
    }
    for (int i = 0; i < kQueue; ++i) {
      ptx::BarrierInit(ptx::SharedAddress(shared.announced + i), 1);
      ptx::BarrierInit(ptx::SharedAddress(shared.taken + i),
                       L::kInputWarps + L::kStoreWarps + kConsumerWarps);
    }
    ptx::BarrierInit(ptx::SharedAddress(&shared.rows_there), 1);
    ptx::BarrierInit(ptx::SharedAddress(&shared.inputs_asked), L::kInputWarps);
    for (int i = 0; i < kMail; ++i) {
      ptx::BarrierInit(ptx::SharedAddress(shared.mail_there + i), 1);
      ptx::BarrierInit(ptx::SharedAddress(shared.mail_read + i), 1);
    }
    if constexpr (kPaired) {
      ptx::BarrierInit(ptx::SharedAddress(&shared.maxima_there), 1);
      ptx::BarrierInit(ptx::SharedAddress(&shared.stores_ready), kConsumerWarps);
      ptx::BarrierInit(ptx::SharedAddress(&shared.stores_read), L::kStoreWarps);
    }
    ptx::BarrierInitFence();
    ptx::AsyncProxyFence();
  }
  __syncthreads();
  ptx::AllowSuccessor();
  if constexpr (kPaired) {  // the other block's barriers are used
    ptx::ClusterArrive();
    ptx::ClusterWait();
  }
  if (warp >= kConsumerWarps) {
    ptx::LowerRegisters<L::kOtherRegisters>();
    if (warp == kWeightWarp) {
      if (lane == 0) {
        LoadWeights<kInner, kPaired>(maps, p, shared, ring);
      }
    } else if (warp < L::kSumWarp) {
      if constexpr (kInner == Inner::kWhole) {
        ptx::WaitForPredecessors();
      }
      LoadInput<kInner>(p, shared, ring, warp - kWeightWarp - 1, lane);
    } else if constexpr (kPaired) {
      if (warp > L::kSumWarp) {
        StoreTiles<Y>(p, shared, warp - L::kSumWarp - 1, lane);
      }
    }
    __syncwarp();
    ptx::WaitForPredecessors();
    const Work work(p, *p.sorted.tiles_used);
    if (warp == L::kSumWarp) {
      if constexpr (kInner == Inner::kParts) {
        ActivateParts(p, work, lane);
      } else if constexpr (kInner == Inner::kGiven) {
        ActivateGiven(p, work, lane);
      }
      __syncwarp();
    }
    if constexpr (!kLeaves) {
      Sum<Y, kPaired>(p, work, lane);
    }
  } else {
    ptx::RaiseRegisters<L::kConsumerRegisters>();
    Consume<Y, kInner, kLeaves, kPaired>(p, shared, ring, warp, lane);
    if constexpr (!kLeaves) {
      __syncwarp();
      if (p.x.rows >= kManySums) {
        ptx::WaitForPredecessors();
        Sum<Y, kPaired>(p, Work(p, *p.sorted.tiles_used), lane);
      }
    }
  }
  if constexpr (kPaired) {  // until nobody arrives here or copies to here any more
    __syncwarp();
    ptx::ClusterArriveRelease();
    ptx::ClusterWait();
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

// How many blocks there are.  All must be there at once: a block waits for tiles that others have
// taken.
template <typename Y, Inner kInner, bool kLeaves = false>
int BlocksOf() {
  constexpr bool kPaired = kInner == Inner::kGiven;
  constexpr unsigned kCluster = kPaired ? 2 : 1;
  constexpr int kBytes = Layout<kPaired>::kSharedBytes;
  const auto kernel = ResidentExpertsKernel<Y, kInner, kLeaves>;
  static PerDevice attribute;
  static std::atomic<int> clusters = std::numeric_limits<int>::max();  // of any device, at least
  attribute.Once([&] {
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    int here = Multiprocessors();
    if (kPaired && error == cudaSuccess) {
      cudaLaunchAttribute attribute{};
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {kCluster, 1, 1};
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(kCluster);
      config.blockDim = dim3(Layout<kPaired>::kThreads);
      config.dynamicSmemBytes = kBytes;
      config.attrs = &attribute;
      config.numAttrs = 1;
      error = cudaOccupancyMaxActiveClusters(&here, kernel, &config);
    }
    clusters = std::min(clusters.load(), here);
    return error;
  });
  return static_cast<int>(kCluster) * clusters;
}

template <typename Y, Inner kInner, bool kLeaves = false>
void LaunchExperts(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream) {
  constexpr bool kPaired = kInner == Inner::kGiven;
  const int blocks = BlocksOf<Y, kInner, kLeaves>();
  LaunchDependent(ResidentExpertsKernel<Y, kInner, kLeaves>,
                  {.grid = static_cast<unsigned>(blocks),
                   .threads = Layout<kPaired>::kThreads,
                   .shared_bytes = Layout<kPaired>::kSharedBytes,
                   .cluster = kPaired ? 2U : 1U},
                  stream, maps, params);
}

// That leaves what experts give, bfloat16: resident_expert_pairs.cu.
void LaunchExpertPairs(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream);
// Of float32: resident_expert_parts.cu.
void LaunchExpertParts(const ExpertMaps& maps, const ExpertsParams& params, cudaStream_t stream);
// Where gate and up of the shared expert are computed in parts, y of either type:
// resident_expert_split.cu.
void LaunchSplitExperts(const ExpertMaps& maps, const ExpertsParams& params, DataType y,
                        cudaStream_t stream);
// Where gate and up of the shared expert are given, y of either type: resident_expert_given.cu.
void LaunchGivenExperts(const ExpertMaps& maps, const ExpertsParams& params, DataType y,
                        cudaStream_t stream);
int GivenExpertsBlocks(DataType y);

}  // namespace dsa::cuda::resident_experts
