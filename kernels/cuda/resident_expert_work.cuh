// What the resident launch of a layer's experts works on: its extents, parameters, shared memory
// and items, and how warps of different blocks tell one another what is done.  resident_experts.cuh
// says how it all goes together.
#pragma once

#include "kernels/cuda/activate.cuh"
#include "kernels/cuda/fp8_stage.cuh"
#include "kernels/cuda/pair_sort.cuh"

#include <cstdint>

#include <cuda.h>

namespace dsa::cuda::resident_experts {

inline constexpr int kConsumerWarps = 8;
inline constexpr int kConsumers = kConsumerWarps * kWarpSize;
inline constexpr int kWeightWarp = 8;
inline constexpr int kTilePairs = 64;
inline constexpr int kTileRows = 256;           // weight rows
inline constexpr int kBoxRows = kTileRows / 2;  // of gate, or of up, in a tile
inline constexpr int kBoxBytes = kBoxRows * kValuesPerScale;
inline constexpr int kShareRows = 32;  // of gate, or of up, of a warpgroup of a pair of blocks
// What a block is made of.  kPaired: two blocks have the same tiles, half of the weight rows each.
template <bool kPaired>
struct Layout {
  static constexpr int kInputWarps = kPaired ? 4 : 2;  // behind the weights' warp
  static constexpr int kSumWarp = kWeightWarp + kInputWarps + 1;
  // Behind it, where consumers leave what a tile gave in shared memory.
  static constexpr int kStoreWarps = kPaired ? 2 : 0;
  static constexpr int kThreads = kPaired ? 512 : 384;
  // Per thread.  Of consumers: sums of 64 pairs, and those of two products under way.
  static constexpr int kConsumerRegisters = kPaired ? 152 : 200;
  static constexpr int kOtherRegisters = 104;
  static constexpr int kOutputs = kPaired ? kBoxRows / 2 : kBoxRows;  // of an inner tile, here
  static constexpr int kCopies = kPaired ? 1 : 2;                     // of a stage
  static constexpr int kTileBytes = 2 * kOutputs * kValuesPerScale;
  static constexpr int kCopyBytes = kTileBytes / kCopies;
  static constexpr int kCopyRows = kCopyBytes / kValuesPerScale;
  static constexpr int kPackedStride = kOutputs + 16;
  static constexpr int kInputBytes = kTilePairs * kValuesPerScale;
  static constexpr int kScaleBytes = (kTilePairs + 2) * 4;  // of the pairs and of both boxes
  static constexpr int kStages = kPaired ? 8 : 5;
  static constexpr int kStageBytes = kTileBytes + kInputBytes + kScaleBytes + 2 * 8;
  static constexpr int kSharedBytes = kTileAlignment + kStages * kStageBytes + 8;
};
inline constexpr int kQueue = 4;  // tiles announced ahead
// A block takes its next tile so many stages before the last of one is asked for: no earlier than
// it must, as a block with a long tile would else take one more before those with short ones have
// any.  So many before, it knows what it has taken, and the second block of a pair is told.
template <bool kPaired>
inline constexpr int kTakenAhead = kPaired ? 6 : 5;
template <bool kPaired>
inline constexpr int kSentAhead = kPaired ? 3 : 0;
inline constexpr int kMail = 4;  // tiles that the second block of a pair may be behind
// Of the first tile, asked for before rows of x are: behind whole rings of all blocks they would
// come when the memory has nothing more to do.
inline constexpr int kFirstWeights = 4;
inline constexpr int kParts = 8;       // of K of the shared expert's inner tiles
inline constexpr int kPartPairs = 16;  // at most: more rows gain nothing
inline constexpr int kPartPacks = kConsumers * kPartPairs / 4;  // float4 of a part's sums, at most
// Of the tile behind a block's part, by the guess that all experts are hit.
inline constexpr int kGuessedStages = 5;
inline constexpr int kSumColumns = kTileRows;
inline constexpr int kManySums = 17;  // rows from which on consumers add sums when no tile is left

enum NamedBarrier { kConsumersMeet = 1 };
enum Which { kRouted, kShared, kKinds };
// How gate and up of the shared expert are computed.
enum class Inner {
  kWhole,  // as those of the others, or there is none
  kParts,  // in parts of K, before the gate has chosen
  kGiven,  // by launches before
};

// Zeroed by every Prepare.
struct Counters {
  int* tiles_taken;
  int* sums_taken;
  int* inner_done;  // [tiles of pairs]  warps that have stored their part
  int* outer_done;  // [outer tiles]
  // Zeroed before rows_ready is set: [inner tiles of an expert]  warps that have stored a part's
  // sums.
  int* parts_done;
  // Blocks that may read rows of x (of parts), or the sorted pairs (pairs of blocks), and have not
  // said yet that they know; null elsewhere.
  unsigned* rows_ready;
};
// Of pairs of blocks gate[kRouted] is a map of gate and up, whose boxes have kShareRows of either,
// twice.
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
  float4* part_sums;  // [inner tiles, kParts, kPartPacks]  null: no tile is computed in parts
  bool up_is_first;   // of pairs of blocks: it is before gate in a stage
  bool guesses_hit;   // all experts are, most likely
  // Gate and up of the shared expert, where launches before have computed them; data null: they
  // have not.  y: what down multiplies, by token, there and where they are computed in parts.
  ActivateParams given;
  void* contributions;  // [P, D]  of the sorted pairs; as shared and y of the kernel's type
  bool leaves_pairs;    // contributions are left, by pair, and y is not written
  Matrix<const float> weights;
  const void* shared;  // a shared expert's output, or null
  std::int64_t shared_stride;
  void* y;
  std::int64_t y_stride;
  int width;
};

// Warps that announce an outer tile, or an inner one, of both blocks where two have it.
template <bool kPaired, typename Y>
inline constexpr int kOuterSignals = kPaired ? 2 * (sizeof(Y) == 2 ? Layout<true>::kStoreWarps
                                                                   : kConsumerWarps)
                                             : kConsumerWarps;
template <bool kPaired>
inline constexpr int kInnerSignals = kPaired ? 2 * Layout<true>::kStoreWarps : kConsumerWarps;

// kSkipped: stages that a guess has asked for and nobody wants; kNone: no tile is left.
enum class TaskKind : int { kPart, kInner, kOuter, kSkipped, kNone };

// A tile as it is announced: all that who works on it must know.
struct alignas(16) Task {
  TaskKind kind;
  int column;  // of inner or outer tiles
  int part;    // of K, where kind is kPart
  int group;   // tile of pairs; -1: a rehearsal
  int expert;
  int first;        // of the sorted pairs
  int count;        // of pairs
  int stored;       // of these; none in a rehearsal
  int first_block;  // of K
  int end_block;
};

// What consumers, and warps that store, do first, while the gate still chooses: the ends of an
// inner and of an outer tile, of which nothing is stored, so that their instructions are in the
// caches, as they run once per tile, and all wait for them, while the memory system is busy with
// weights.
inline constexpr int kRehearsals = 2;
__device__ inline Task RehearsalOf(const ExpertsParams& p, int index) {
  const int tokens = static_cast<int>(p.x.rows);
  const int mean = tokens * static_cast<int>(p.choice.experts.cols) / p.choice.expert_count;
  return {.kind = index == 0 ? TaskKind::kInner : TaskKind::kOuter,
          .column = 0,
          .part = 0,
          .group = -1,
          .expert = 0,
          .first = 0,
          .count = min(min(max(mean, 1), tokens), kTilePairs),
          .stored = 0,
          .first_block = 0,
          .end_block = 0};
}

// Of consumers, at the ends of tiles.
inline constexpr int kStagedStride = kBoxRows + 8;
template <bool kPaired>
struct EndShared;
template <>
struct EndShared<false> {
  std::uint8_t packed[kTilePairs][Layout<false>::kPackedStride];
  float maxima[kConsumerWarps][kTilePairs];
};
template <>
struct EndShared<true> {
  std::uint8_t packed[kTilePairs][Layout<true>::kPackedStride];
  float maxima[2][4][kTilePairs];  // of the warpgroups of both blocks, tiles in turns
  __nv_bfloat16 staged[kTilePairs][kStagedStride];  // of an outer tile
  std::uint64_t maxima_there;
  std::uint64_t stores_ready;  // packed or staged, by the consumers
  std::uint64_t stores_read;   // by the warps that store
};
template <bool kPaired>
struct BlockShared : EndShared<kPaired> {
  Task queue[kQueue];
  std::uint64_t announced[kQueue];
  std::uint64_t taken[kQueue];
  std::uint64_t rows_there;    // rows of x may be read
  std::uint64_t inputs_asked;  // of the first tile, by the input warps
  uint4 mail[kMail];  // what the first block of a pair has taken: item, expert, first, count
  std::uint64_t mail_there[kMail];  // in the second
  std::uint64_t mail_read[kMail];   // in the first
};

// The items of a launch, in this order: parts of the shared expert's inner tiles; inner tiles of
// each other tile of pairs; outer tiles column by column.  The shared expert's pairs are one tile,
// the last.  Where its gate and up are given or computed in parts, it has no other inner tiles, and
// its outer tiles come before those of the others, which wait for inner tiles.
struct Work {
  int groups;  // tiles of pairs
  int inner_tiles;
  int outer_tiles;
  int inner_blocks;  // of K
  int outer_blocks;
  int inner_groups;  // tiles of pairs whose inner tiles are computed whole
  int first_whole;   // items
  int first_outer;
  int first_waiting;      // outer tiles that wait for inner ones
  int early_groups = 0;   // whose inner tiles are none of the last wave
  int early_columns = 0;  // columns whose outer tiles of those groups come first
  __device__ Work(const ExpertsParams& p, int used)
      : groups(used),
        inner_tiles(p.width / kBoxRows),
        outer_tiles((static_cast<int>(p.x.cols) + kTileRows - 1) / kTileRows),
        inner_blocks(static_cast<int>(p.x.cols) / kValuesPerScale),
        outer_blocks(p.width / kValuesPerScale),
        inner_groups(groups - (p.part_sums != nullptr || p.given.gate.data != nullptr ? 1 : 0)),
        first_whole(p.part_sums != nullptr ? inner_tiles * kParts : 0),
        first_outer(first_whole + inner_groups * inner_tiles),
        first_waiting(first_outer + (inner_groups < groups ? outer_tiles : 0)) {}
  __device__ int items() const { return first_outer + groups * outer_tiles; }
  __device__ TaskKind Kind(int item) const {
    if (item >= items()) {
      return TaskKind::kNone;
    }
    if (IsOuter(item)) {
      return TaskKind::kOuter;
    }
    return IsPart(item) ? TaskKind::kPart : TaskKind::kInner;
  }
  // A part computes all rows of x, in their order.
  __device__ Task PartOf(int item, const ExpertsParams& p) const {
    const auto tokens = static_cast<int>(p.x.rows);
    return TaskOf(item, {.expert = p.choice.expert_count, .first = 0, .count = tokens});
  }
  __device__ Task TaskOf(int item, const PairTile& pairs) const {
    return {.kind = Kind(item),
            .column = Column(item),
            .part = item % kParts,
            .group = Group(item),
            .expert = pairs.expert,
            .first = pairs.first,
            .count = pairs.count,
            .stored = pairs.count,
            .first_block = FirstBlock(item),
            .end_block = EndBlock(item)};
  }
  __device__ bool IsPart(int item) const { return item < first_whole; }
  __device__ bool IsWhole(int item) const { return item >= first_whole && item < first_outer; }
  __device__ bool IsOuter(int item) const { return item >= first_outer; }
  // Tiles of pairs among which columns of waiting outer tiles go round.
  __device__ int WaitingGroups() const { return groups - (first_waiting > first_outer ? 1 : 0); }
  // Puts first what does not wait for the last `at_once` inner tiles, so that who has done one of
  // those finds an outer tile to go on with.
  __device__ void OrderOuter(int at_once) {
    early_groups = max(0, first_outer - first_whole - at_once) / inner_tiles;
    const int wanted = max(0, at_once - (first_waiting - first_outer));
    early_columns =
        early_groups > 0 ? min(outer_tiles, (wanted + early_groups - 1) / early_groups) : 0;
  }
  // Of a waiting outer tile.
  __device__ int2 GroupAndColumn(int item) const {
    int i = item - first_waiting;
    const int late = WaitingGroups() - early_groups;
    if (i < early_columns * early_groups) {
      return make_int2(i % early_groups, i / early_groups);
    }
    if (i < early_columns * WaitingGroups()) {
      i -= early_columns * early_groups;
      return make_int2(early_groups + i % late, i / late);
    }
    return make_int2(i % WaitingGroups(), i / WaitingGroups());
  }
  __device__ int Group(int item) const {
    if (item >= first_waiting) {
      return GroupAndColumn(item).x;
    }
    return IsWhole(item) ? (item - first_whole) / inner_tiles : groups - 1;
  }
  __device__ int Column(int item) const {
    if (item >= first_waiting) {
      return GroupAndColumn(item).y;
    }
    if (IsOuter(item)) {
      return item - first_outer;
    }
    return IsPart(item) ? item / kParts : (item - first_whole) % inner_tiles;
  }
  // Blocks [FirstBlock, EndBlock) of K.
  __device__ int FirstBlock(int item) const {
    return IsPart(item) ? inner_blocks * (item % kParts) / kParts : 0;
  }
  __device__ int EndBlock(int item) const {
    if (IsPart(item)) {
      return inner_blocks * (item % kParts + 1) / kParts;
    }
    return IsOuter(item) ? outer_blocks : inner_blocks;
  }
};

// Shared addresses of stage 0 of each part.
template <bool kPaired>
struct Ring : Layout<kPaired> {
  using L = Layout<kPaired>;
  unsigned tiles;
  unsigned inputs;
  unsigned scales;
  unsigned full;   // 8 bytes a stage: the weights' thread, its bytes, and the input warp's lanes
  unsigned empty;  // 8 bytes a stage: the consumer warps
  __device__ explicit Ring(const void* shared)
      : tiles((ptx::SharedAddress(shared) + kTileAlignment - 1) / kTileAlignment * kTileAlignment),
        inputs(tiles + L::kStages * L::kTileBytes),
        scales(inputs + L::kStages * L::kInputBytes),
        full((scales + L::kStages * L::kScaleBytes + 7) & ~7U),
        empty(full + 8 * L::kStages) {}
  // In registers: the compiler would else compute addresses anew for each stage.
  __device__ void Hold() { asm volatile("" : "+r"(tiles), "+r"(full), "+r"(empty)); }
};

__device__ inline int LoadAcquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
// Until the block may go on (AnnounceTo), though the kernels ahead have not all ended.  The block
// says that it knows: when all have, the next launch of experts may use the word again.  One
// thread.
__device__ inline void WaitToGoOn(const Counters& counters, unsigned sleep_ns) {
  while (LoadAcquire(reinterpret_cast<const int*>(counters.rows_ready)) == 0) {
    __nanosleep(sleep_ns);
  }
  atomicSub(counters.rows_ready, 1U);
}
// Announces that the warp's earlier stores are there.
__device__ inline void Signal(int* counter, int lane) {
  __syncwarp();
  if (lane == 0) {
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
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

}  // namespace dsa::cuda::resident_experts
