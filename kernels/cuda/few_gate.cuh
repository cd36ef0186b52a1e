// The gate of up to 64 tokens as a part of a launch: blocks compute a part of the logits each, some
// of them then choose, and the last of those sorts the pairs for the experts' launch.
//
//   logits   block (tile of 16 experts, slice of 1024 columns): a warp per 128 columns, which asks
//            for its weights before the kernels ahead have ended, and then for all of x at once.
//            Sums of 64 columns meet in shared memory and are added in order
//   choose   a warp per token in the first blocks, once all parts are there
//   sort     the block that has chosen last
//
// Where blocks are to spare that compute nothing, those choose, with twice as many warps each: on a
// multiprocessor to which weights stream, whatever is read comes behind them.
//
// Blocks that choose rehearse the choice and the sort before the kernels ahead have ended: their
// instructions would else come when all wait for them, one line after the other, behind the weights
// that the experts' launch has asked for by then.
//
// 3.7 MB of weights at V3.2's extents: 1.2 us at the memory's rate.  What counts is one way through
// the L2 cache each for x, for the parts and for the choice.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/few_gate.h"
#include "kernels/cuda/gate_choice.cuh"
#include "kernels/cuda/pair_sort.cuh"
#include "kernels/cuda/ptx/mma.cuh"

#include <algorithm>

namespace dsa::cuda::few_gate {

inline constexpr int kWarps = 8;
inline constexpr int kThreads = kWarps * kWarpSize;
inline constexpr int kApartWarps = 16;  // of a block that does nothing but choose (ChooseApart)
inline constexpr int kTokensMax = 64;
inline constexpr int kExperts = 16;  // of a block
inline constexpr int kWarpColumns = kGateSliceColumns / kWarps;
inline constexpr int kPackColumns = 8;                          // 16 bytes of bfloat16
inline constexpr int kPacks = kWarpColumns / kPackColumns / 4;  // of a lane and row
inline constexpr int kStagePacks = 2;  // 64 columns are summed apart, as RowProduct does
inline constexpr int kWarpStages = kPacks / kStagePacks;
inline constexpr int kStages = kWarps * kWarpStages;
inline constexpr int kTileTokens = 8;
inline constexpr int kGroupTiles = 4;  // whose sums are in shared memory at once
inline constexpr int kPerLane = static_cast<int>(kFewGateExperts) / kWarpSize;
static_assert(kFewGateExperts == kThreads, "a thread per expert sorts");

enum NamedBarrier { kGateMeets = kSortMeets };  // of the warps that are the gate's
template <int kAll = kThreads>
__device__ inline void SyncGate() {
  ptx::NamedBarrierSync(kGateMeets, kAll);
}

union BlockShared {
  float sums[kStages][kGroupTiles * kTileTokens][kExperts + 1];
  ChoiceShared<kPerLane> choices[kApartWarps];
  ChoiceShared<1> few_choices[kApartWarps];  // among no more experts than lanes
};

__host__ __device__ inline int ExpertTiles(std::int64_t experts) {
  return static_cast<int>((experts + kExperts - 1) / kExperts);
}
// Blocks that compute a part of the logits of one group of tokens.
__host__ __device__ inline int Parts(const GateParams& p) {
  return ExpertTiles(p.weight.rows) * static_cast<int>(GateSlices(p.x.cols));
}
// Blocks that choose, few: a launch behind this one may want the others' multiprocessors.
__host__ __device__ inline int Choosers(const GateParams& p) {
  return (static_cast<int>(p.x.rows) + kWarps - 1) / kWarps;
}

// The same where they do nothing else.
inline int ApartChoosers(const GateParams& p) {
  return (static_cast<int>(p.x.rows) + kApartWarps - 1) / kApartWarps;
}

struct FewGateParams {
  GateParams gate;
  float* logits;
  unsigned* counters;
  bool sorts;
  PairPreparation preparation;
  int groups = 1;      // of tokens, whose logits are computed by blocks of their own
  int group_tokens;    // of all but the last
  int first_part = 0;  // of the blocks
  int first_chooser = 0;
  int choosers;

  explicit FewGateParams(const FewGateCall& call)
      : gate(call.gate),
        logits(call.logits),
        counters(call.counters),
        sorts(call.preparation != nullptr),
        preparation(sorts ? *call.preparation : PairPreparation{}),
        group_tokens(static_cast<int>(call.gate.x.rows)),
        choosers(Choosers(call.gate)) {}
  // Blocks that compute a part of the logits.
  __host__ __device__ int Parts() const { return few_gate::Parts(gate) * groups; }
  __host__ __device__ int Blocks() const {
    const int end = first_chooser + choosers;
    return first_part + Parts() > end ? first_part + Parts() : end;
  }
  // For a launch of so many blocks, which has multiprocessors to spare: a block's way to its part
  // is the shorter the fewer tokens it has, and who chooses has no part if there are enough.
  // `apart`: so many blocks more, ahead of the others, of which ApartChoosers choose; or none.
  void SpreadOver(int blocks, int apart) {
    const int parts = few_gate::Parts(gate);
    const int tiles = (static_cast<int>(gate.x.rows) + kTileTokens - 1) / kTileTokens;
    const int wanted = std::clamp((blocks - (apart > 0 ? 0 : choosers)) / parts, 1, tiles);
    const int group_tiles = (tiles + wanted - 1) / wanted;
    groups = (tiles + group_tiles - 1) / group_tiles;
    group_tokens = group_tiles * kTileTokens;
    first_part = apart;
    first_chooser = apart == 0 && Parts() + choosers <= blocks ? Parts() : 0;
    choosers = apart > 0 ? ApartChoosers(gate) : choosers;
  }
};

// A lane's packs of one row, zeros beyond its end.  Lane 4 g + q of a warp reads 16 bytes of row g:
// the order of columns within a product is free if both operands have the same.
__device__ inline void LoadRow(const void* matrix, std::int64_t row_stride, int row, int rows,
                               int column, int columns, uint4 (&packs)[kPacks]) {
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int first = column + i * 4 * kPackColumns;
    packs[i] = make_uint4(0, 0, 0, 0);
    if (row < rows && first < columns) {
      packs[i] = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(matrix) +
                                                 row * row_stride + first);
    }
  }
}

// Asks for the weights of this block's experts, 64 columns of one a lane, in no register: what is
// rehearsed needs those.
__device__ inline void PrefetchWeights(const GateParams& gate, int block) {
  constexpr int kLineColumns = 64;
  static_assert(kExperts * kWarpColumns == kWarpSize * kLineColumns);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int tiles = ExpertTiles(gate.weight.rows);
  const int part = block % Parts(gate);
  const std::int64_t expert = part % tiles * kExperts + lane / 2;
  const std::int64_t column =
      part / tiles * kGateSliceColumns + warp * kWarpColumns + lane % 2 * kLineColumns;
  if (expert < gate.weight.rows && column < gate.x.cols) {
    asm volatile(
        "prefetch.global.L2 [%0];" ::"l"(static_cast<const __nv_bfloat16*>(gate.weight.data) +
                                         expert * gate.weight.row_stride + column));
  }
}

// The sums of a warp's stages for eight tokens.
__device__ inline void MultiplyTile(const uint4 (&low)[kPacks], const uint4 (&high)[kPacks],
                                    const uint4 (&x)[kPacks], int warp, int lane, int token,
                                    BlockShared& shared) {
#pragma unroll
  for (int stage = 0; stage < kWarpStages; ++stage) {
    float sum[4] = {};
#pragma unroll
    for (int i = stage * kStagePacks; i < (stage + 1) * kStagePacks; ++i) {
      ptx::MmaBf16(sum, {low[i].x, high[i].x, low[i].y, high[i].y}, x[i].x, x[i].y);
      ptx::MmaBf16(sum, {low[i].z, high[i].z, low[i].w, high[i].w}, x[i].z, x[i].w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      shared.sums[warp * kWarpStages + stage][token + lane % 4 * 2 + i % 2][lane / 4 + i / 2 * 8] =
          sum[i];
    }
  }
}

// This block's part of the logits.  kLoaded tiles of tokens are in registers at once.
template <int kTiles, int kLoaded>
__device__ void Multiply(const FewGateParams& p, BlockShared& shared, int thread) {
  constexpr int kAtOnce = kTiles < kGroupTiles ? kTiles : kGroupTiles;
  static_assert(kTiles % kLoaded == 0 && kLoaded % kAtOnce == 0);
  const GateParams& gate = p.gate;
  const int warp = thread / kWarpSize;
  const int lane = thread % kWarpSize;
  const int experts = static_cast<int>(gate.weight.rows);
  const int block = static_cast<int>(blockIdx.x) - p.first_part;
  const int part = block % Parts(gate);
  const int tokens = static_cast<int>(gate.x.rows);
  const int own_first = block / Parts(gate) * p.group_tokens;
  const int own_tokens = min(tokens - own_first, p.group_tokens);
  const int columns = static_cast<int>(gate.x.cols);
  const int tiles = ExpertTiles(experts);
  const int first_expert = part % tiles * kExperts;
  const int slice = part / tiles;
  const int column = slice * kGateSliceColumns + warp * kWarpColumns + lane % 4 * kPackColumns;
  uint4 low[kPacks];
  uint4 high[kPacks];
  LoadRow(gate.weight.data, gate.weight.row_stride, first_expert + lane / 4, experts, column,
          columns, low);
  LoadRow(gate.weight.data, gate.weight.row_stride, first_expert + lane / 4 + 8, experts, column,
          columns, high);
  ptx::WaitForPredecessors();
  if (p.sorts && block == 0 && warp == 0) {
    AnnounceRows(p.preparation);
  }
  uint4 x[kLoaded][kPacks];
#pragma unroll
  for (int group = 0; group < kTiles; group += kAtOnce) {
    if (group * kTileTokens >= own_tokens) {
      break;
    }
    if (group % kLoaded == 0) {
#pragma unroll
      for (int tile = 0; tile < kLoaded; ++tile) {
        LoadRow(gate.x.data, gate.x.row_stride, own_first + (group + tile) * kTileTokens + lane / 4,
                own_first + own_tokens, column, columns, x[tile]);
      }
    }
#pragma unroll
    for (int tile = 0; tile < kAtOnce; ++tile) {
      if ((group + tile) * kTileTokens < own_tokens) {
        MultiplyTile(low, high, x[group % kLoaded + tile], warp, lane, tile * kTileTokens, shared);
      }
    }
    SyncGate();
    const int first = own_first + group * kTileTokens;
    const int count = min(own_first + own_tokens - first, kAtOnce * kTileTokens);
#pragma unroll 1
    for (int i = thread; i < count * kExperts; i += kThreads) {
      const int token = i / kExperts;
      const int expert = i % kExperts;
      float sum = 0.0F;
#pragma unroll
      for (int stage = 0; stage < kStages; ++stage) {
        sum += shared.sums[stage][token][expert];
      }
      if (first_expert + expert < experts) {
        p.logits[(static_cast<std::int64_t>(slice) * tokens + first + token) *
                     GateLogitStride(experts) +
                 first_expert + expert] = sum;
      }
    }
    SyncGate();
  }
}

// Counts this block among the `count` that choose; true in the last, which leaves both counters
// zero.  One thread, once all parts were there.
__device__ inline bool CountChooser(unsigned* counters, int count) {
  const unsigned last = static_cast<unsigned>(count) - 1;
  if (count > 1) {
    unsigned before;  // the word wraps to 0
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counters + 1), "r"(last)
                 : "memory");
    if (before != last) {
      return false;
    }
  }
  *counters = 0;
  return true;
}

// Whether this block has chosen last; then it sees what the others have chosen.  The whole block.
template <int kAll>
__device__ inline bool IsLast(unsigned* counters, int count) {
  __shared__ bool is_last;
  SyncGate<kAll>();
  if (count == 1) {  // nobody has chosen beside it
    if (threadIdx.x == 0) {
      CountChooser(counters, count);
    }
    return true;
  }
  if (threadIdx.x == 0) {
    is_last = CountChooser(counters, count);
  }
  SyncGate<kAll>();
  return is_last;
}

// Waits until all parts of the logits are there.  The whole block.
template <int kAll>
__device__ inline void WaitForParts(const unsigned* counter, unsigned parts) {
  if (threadIdx.x == 0) {
    unsigned here = 0;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(here) : "l"(counter) : "memory");
    } while (here < parts);
  }
  SyncGate<kAll>();
}

// A thread's number anew: the compiler would else compute in front of a loop whatever follows from
// it, and keep it in registers that there are not.
__device__ inline int ThreadAnew() {
  int thread = static_cast<int>(threadIdx.x);
  asm volatile("" : "+r"(thread));
  return thread;
}

// A token a warp, by the block's first kAll threads; the block that has chosen last sorts.
template <int kAll>
__device__ inline void ChooseAndSort(const FewGateParams& p, BlockShared& shared, int chooser,
                                     int thread, bool is_rehearsal) {
  const int warp = thread / kWarpSize;
  const int token = chooser * (kAll / kWarpSize) + warp;
  if (!p.sorts && !is_rehearsal && threadIdx.x == 0) {
    CountChooser(p.counters, p.choosers);  // beside the choice: nobody waits for it
  }
  if (token < static_cast<int>(p.gate.x.rows)) {
    const int lane = thread % kWarpSize;
    if (p.gate.weight.rows <= kWarpSize) {
      ChooseExperts(p.gate, p.logits, token, lane, shared.few_choices[warp], is_rehearsal);
    } else {
      ChooseExperts(p.gate, p.logits, token, lane, shared.choices[warp], is_rehearsal);
    }
  }
  if (p.sorts && (is_rehearsal || IsLast<kAll>(p.counters, p.choosers))) {
    PreparePairs<kAll>(p.preparation, is_rehearsal);
  }
  if (is_rehearsal) {
    SyncGate<kAll>();  // shared memory is free again
  }
}

// What a block does that chooses and computes nothing: nothing that streams to its multiprocessor
// is in the way of what it reads.
__device__ inline void ChooseApart(const FewGateParams& p, BlockShared& shared) {
  constexpr int kAll = kApartWarps * kWarpSize;
  const int chooser = static_cast<int>(blockIdx.x) - p.first_chooser;
  if (chooser >= p.choosers) {
    ptx::WaitForPredecessors();
    return;
  }
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    if (turn > 0) {
      ptx::WaitForPredecessors();
      WaitForParts<kAll>(p.counters, static_cast<unsigned>(p.Parts()));
    }
    ChooseAndSort<kAll>(p, shared, chooser, ThreadAnew(), turn == 0);
  }
}

// The gate by the block's first kThreads threads: a part of the logits, then the choice for a token
// a warp or none of both.  Blocks of the grid: as many as Parts or Choosers, at least, and all
// there at once.
template <int kTiles, int kLoaded = kTiles>  // of eight tokens
__device__ void Run(const FewGateParams& p, BlockShared& shared) {
  const int block = static_cast<int>(blockIdx.x) - p.first_part;
  const int parts = p.Parts();
  const int choosers = p.choosers;
  const int chooser = static_cast<int>(blockIdx.x) - p.first_chooser;
  const bool is_chooser = chooser >= 0 && chooser < choosers;
  const bool is_alone =  // nobody to wait for
      parts == 1 && choosers == 1 && p.first_chooser == p.first_part;
  const bool has_part = block >= 0 && block < parts;
  if (is_chooser && has_part) {
    PrefetchWeights(p.gate, block);
  }
  // One loop, so that what is rehearsed and what counts are the same instructions.
#pragma unroll 1
  for (int turn = is_chooser ? 0 : 1; turn < 2; ++turn) {
    const bool is_rehearsal = turn == 0;
    const int thread = ThreadAnew();
    if (!is_rehearsal) {
      if (has_part) {
        Multiply<kTiles, kLoaded>(p, shared, thread);  // ends with a barrier
        if (threadIdx.x == 0 && !is_alone) {
          asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p.counters) : "memory");
        }
      } else {
        ptx::WaitForPredecessors();
      }
      if (!is_chooser) {
        return;
      }
      if (!is_alone) {
        WaitForParts<kThreads>(p.counters, static_cast<unsigned>(parts));
      }
    }
    ChooseAndSort<kThreads>(p, shared, chooser, thread, is_rehearsal);
  }
}

}  // namespace dsa::cuda::few_gate
