// IndexSelection: a cluster of 1 to 16 blocks a row, each with a contiguous part of its keys.
//
//   1. The histogram tells the bin of the k-th highest score before any score is looked at.
//   2. One sweep makes a bit a key, set for the keys above that bin, and writes down the keys in
//      it, the candidates.
//   3. The candidates of all blocks go to each, which finds the exact threshold for itself: 18 bits
//      are left, 6 a pass.  Those above it and those equal to it become bits.
//   4. A thread counts the bits of its words, knows how many lie before, and lists their positions.
//
// How many candidates a row has is known after 1.  Where they are too many (equal scores, a narrow
// spread, mostly zeros), three counting passes of 11, 11 and 10 bits over the row find the
// threshold instead of 3, and the sweep makes both kinds of bits at once.
//
// A histogram of other scores would select wrongly; no place outside the lists is written then.
//
// Reads 4 bytes a key once; with few rows the fixed latency of some eight barriers is the cost.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/index_scores.h"
#include "kernels/cuda/index_selection.h"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/row_selection.cuh"
#include "kernels/cuda/score_order.cuh"
#include "kernels/cuda/warp_sums.cuh"
#include "kernels/kv_layout.h"

#include <algorithm>

#include <cooperative_groups.h>

namespace dsa::cuda::index_selection {

namespace cg = cooperative_groups;

inline constexpr int kClusterMax = 16;
inline constexpr int kGroup = 4;  // words of a warp that are stored together
inline constexpr int kGroupKeys = kGroup * kWarpSize;
inline constexpr int kDigitBits = 6;  // of a pass over the candidates
inline constexpr int kDigits = 1 << kDigitBits;
inline constexpr int kPasses = (32 + kDigitBits - 1) / kDigitBits;
inline constexpr int kSharedBytesMax = 227 * 1024;
inline constexpr std::int64_t kPartMax = 1
                                         << 19;  // keys of a block: two bits each in shared memory
inline constexpr std::int64_t kShortRowMax = 1 << 15;  // of a narrow block
inline constexpr int kNanBits = -1;                    // no score: neither above nor in a bin

// A block's size: threads; candidates of a block, and of all blocks of a row; ids of its part's
// blocks that are kept; scores that a thread loads in a turn, and turns that are on their way;
// blocks of a multiprocessor; whether blocks may share a row.
struct Wide {  // few rows, in clusters or alone: registers for three turns
  static constexpr int kThreads = 512;
  static constexpr int kCandidatesMax = 2048;
  static constexpr int kKeys = 8192;
  static constexpr int kTableMax = 1024;
  static constexpr int kLoads = 16;
  static constexpr int kBuffers = 3;
  static constexpr int kBlocks = 1;
  static constexpr bool kShares = true;
  using Place = int;
};
struct Paired : Wide {
  static constexpr int kBuffers = 2;
  static constexpr int kBlocks = 2;
};
struct Narrow {  // many short rows: what counts is how many are under way
  static constexpr int kThreads = 128;
  static constexpr int kCandidatesMax = 1024;
  static constexpr int kKeys = kScoreBins;
  static constexpr int kTableMax = kShortRowMax / kTokensPerBlock;
  static constexpr int kLoads = 8;
  static constexpr int kBuffers = 2;
  static constexpr int kBlocks = 8;
  static constexpr bool kShares = false;
  using Place = std::uint16_t;
};

// Behind it two words for each 32 keys of the part: keys above the threshold, and equal to it.
template <typename Size>
struct alignas(16) Shared {
  static constexpr int kWarps = Size::kThreads / kWarpSize;
  unsigned keys[Size::kKeys];  // of the candidates, in equal shares for the cluster's blocks
  typename Size::Place places[Size::kCandidatesMax];  // of this block's: where in the part
  typename Size::Place list[kIndexSelectionMax];      // what this block selects: where in the part
  int digits[kPasses][kDigits];                       // 0 at first
  std::int32_t table[Size::kTableMax];
  unsigned warp_sums[2][kWarps];
  int2 counts[kClusterMax];  // of each block, written by it: keys above, and in the bin or equal
  int above;                 // of this block
  int inside;
  unsigned lower;  // candidates of the blocks before: above the threshold, and equal
  // What one thread tells the others.
  int bin;
  int missing;
  int in_bin;

  static_assert(Size::kKeys >= (Size::kShares ? 4 : 1) * kScoreBins,
                "the passes over a row have their histograms in the memory of candidates");
};

__device__ inline float NoScore() {
  return __int_as_float(kNanBits);
}

struct KernelParams {
  SelectTopKParams call;
  const std::int32_t* work;
  int cluster;
  int words;  // of a part, for which shared memory has room
};

// Keys from `above` on are selected; those from `lowest` on, but not from `above` on, perhaps.
struct Borders {
  float lowest;
  float above;
};

// The digit at which a count of `digits`, from the highest down, reaches `missing`: adds it to the
// threshold, leaves in `missing` what is then wanted of it, and returns how many have it.  Each
// warp for itself, a lane has two digits.
__device__ inline int FindDigit(const int* digits, int shift, int lane, int& missing,
                                unsigned& threshold) {
  static_assert(kDigits == 2 * kWarpSize);
  const int digit = kDigits - 2 - 2 * lane;
  const int2 counts = *reinterpret_cast<const int2*>(digits + digit);
  const int count = counts.x + counts.y;
  const auto inclusive = static_cast<int>(InclusiveWarpSum(static_cast<unsigned>(count), lane));
  const int above = inclusive - count;
  const unsigned lanes = __ballot_sync(kAllLanes, missing <= inclusive);
  const int found = max(__ffs(static_cast<int>(lanes)) - 1, 0);
  const bool is_upper = missing <= above + counts.y;
  const int left = missing - above - (is_upper ? 0 : counts.y);
  missing = max(__shfl_sync(kAllLanes, left, found), 0);
  threshold |= __shfl_sync(kAllLanes, static_cast<unsigned>(digit + (is_upper ? 1 : 0)), found)
               << shift;
  return __shfl_sync(kAllLanes, is_upper ? counts.y : counts.x, found);
}

// One row in one block of a cluster.  Every member function is called by all threads.
template <typename Size>
class Selection final {
 public:
  __device__ Selection(const KernelParams& p, Shared<Size>& shared)
      : s_(shared),
        above_words_(reinterpret_cast<unsigned*>(&shared + 1)),
        equal_words_(above_words_ + p.words),
        cluster_(Size::kShares ? p.cluster : 1),
        rank_(cluster_ == 1 ? 0 : static_cast<int>(ptx::ClusterRank())),
        row_(blockIdx.x / static_cast<unsigned>(cluster_)),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % kWarpSize),
        warp_(thread_ / kWarpSize),
        k_(static_cast<int>(p.call.k)),
        share_(min(Size::kCandidatesMax, Size::kKeys / cluster_)),
        output_(p.call, row_),
        scores_(p.call.scores.Row(row_)),
        work_(p.work + row_ * kRowWorkInts),
        visible_(min(p.call.rows.positions.data[row_] + 1, p.words * kWarpSize * cluster_)),
        part_(((visible_ + cluster_ - 1) / cluster_ + kGroupKeys - 1) / kGroupKeys * kGroupKeys),
        begin_(min(rank_ * part_, visible_)),
        end_(min(begin_ + part_, visible_)),
        loads_(min(kLoads, (part_ + kThreads * kGroup - 1) / (kThreads * kGroup) * kGroup)),
        turn_keys_(loads_ * kThreads) {}

  __device__ void Run(const KernelParams& p) {
    for (int i = thread_; i < kPasses * kDigits; i += kThreads) {
      s_.digits[i / kDigits][i % kDigits] = 0;
    }
    if (thread_ == 0) {
      s_.above = 0;
      s_.inside = 0;
      s_.lower = 0;
      s_.bin = 0;
      s_.missing = 1;
      s_.in_bin = Size::kCandidatesMax + 1;  // where the histogram has no k scores: counted anew
    }
    if (cluster_ > 1) {
      ptx::ClusterArrive();  // this block has started
    }
    KeepTable();
    ptx::WaitForPredecessors();
    ptx::AllowSuccessor();
    if (rank_ == 0 && thread_ == 0) {
      p.call.counts.data[row_] = min(k_, visible_);
    }
    const bool is_short = visible_ <= k_;
    const bool has_nan = __ldcg(work_ + kNanFlag) != 0;
    float turns[kBuffers][kLoads];
    int counts[kBinsEach];
    if (!is_short) {  // on their way before it is known whether a score is NaN
      LoadAll(turns, counts);
    }
    if (rank_ == 0 && thread_ == 0 && has_nan) {
      p.call.faults.data[row_] |= kRowFaultIndexerNan;
    }
    if (!is_short && !has_nan) {
      SelectBest(turns, counts);
      return;
    }
    if (cluster_ > 1) {
      ptx::ClusterWait();
    }
    if (rank_ == 0) {
      output_.template SelectFirst<kThreads>(min(k_, visible_), k_);
    }
  }

 private:
  static constexpr int kThreads = Size::kThreads;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kLoads = Size::kLoads;
  static constexpr int kBuffers = Size::kBuffers;
  static constexpr int kBinsEach = kScoreBins / kThreads;

  // The first turns, and a thread's bins from the highest down.
  __device__ __forceinline__ void LoadAll(float (&turns)[kBuffers][kLoads],
                                          int (&counts)[kBinsEach]) const {
#pragma unroll
    for (int i = 0; i < kBinsEach; i += 4) {
      const int4 four = __ldcg(reinterpret_cast<const int4*>(work_ + kScoreBins) - 1 -
                               (thread_ * kBinsEach + i) / 4);
      counts[i] = four.w;
      counts[i + 1] = four.z;
      counts[i + 2] = four.y;
      counts[i + 3] = four.x;
    }
#pragma unroll
    for (int i = 0; i < kBuffers; ++i) {
      LoadTurn(begin_ + i * turn_keys_, turns[i]);
    }
  }

  __device__ __forceinline__ void SelectBest(float (&turns)[kBuffers][kLoads],
                                             const int (&counts)[kBinsEach]) {
    FindBin<kBinsEach>(counts, k_);
    const int bin = s_.bin;
    missing_ = s_.missing;
    fits_ = s_.in_bin <= share_;
    if (cluster_ > 1) {
      ptx::ClusterWait();  // the others have started: their memory may be written
    }
    Borders borders{.lowest = LowestScore(bin),
                    .above = bin + 1 == kScoreBins ? NoScore() : LowestScore(bin + 1)};
    if (!fits_) {
      FindThresholdOfRow();
      borders = {.lowest = ScoreOfKey(threshold_), .above = ScoreOfKey(threshold_ + 1U)};
    }
    Sweep(borders, turns);
    if (cluster_ > 1) {
      Exchange();
    }
    if (fits_) {
      FindThresholdOfCandidates(bin);
      MarkCandidates();
    }
    List();
  }

  template <typename T>
  __device__ T* InBlock(T* here, int rank) const {
    return cg::this_cluster().map_shared_rank(here, rank);
  }
  __device__ void SyncCluster() const {
    if (cluster_ > 1) {
      cg::this_cluster().sync();
    } else {
      __syncthreads();
    }
  }

  // The ids of the part's blocks, on their way until the sweep has ended.
  __device__ void KeepTable() {
    const int first = begin_ / kTokensPerBlock;
    has_table_ = part_ <= Size::kTableMax * kTokensPerBlock;
    if (has_table_) {
      const int blocks = (end_ + kTokensPerBlock - 1) / kTokensPerBlock - first;
      for (int i = thread_; i < blocks; i += kThreads) {
        ptx::CopyAsync4(ptx::SharedAddress(s_.table + i), output_.table + first + i);
      }
    }
  }
  __device__ std::int32_t BlockOf(int position) const {
    const int block = position / kTokensPerBlock;
    return has_table_ ? s_.table[block - begin_ / kTokensPerBlock] : output_.table[block];
  }

  // In a turn a warp has loads_ words of 32 keys: the key of its first lane in word `load`.
  __device__ int PlaceInTurn(int load) const {
    return (warp_ * loads_ + load) * kWarpSize;
  }
  // NoScore beyond the part.
  __device__ __forceinline__ void LoadTurn(int turn_begin, float (&to)[kLoads]) const {
    const int first = turn_begin + PlaceInTurn(0) + lane_;
    const float* from = scores_ + first;
    const int left = min(end_ - first, loads_ * kWarpSize);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      to[i] = i * kWarpSize < left ? __ldcg(from + i * kWarpSize) : NoScore();
    }
  }

  // From the highest down, a thread has kEach bins: where does the count reach `missing`?
  template <int kEach>
  __device__ void FindBin(const int (&counts)[kEach], int missing) {
    int count = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      count += counts[i];
    }
    const unsigned inclusive = InclusiveWarpSum(static_cast<unsigned>(count), lane_);
    const WarpSums sums =
        SumOverWarps<kWarps>(__shfl_sync(kAllLanes, inclusive, kWarpSize - 1), s_.warp_sums[0]);
    int above = static_cast<int>(sums.before + inclusive) - count;
    if (above < missing && missing <= above + count) {
      bool found = false;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (!found && missing <= above + counts[i]) {
          found = true;
          s_.bin = kThreads * kEach - 1 - thread_ * kEach - i;
          s_.missing = missing - above;
          s_.in_bin = counts[i];
        }
        above += counts[i];
      }
    }
    __syncthreads();
  }

  // Bits of the keys above, and of the others that may be selected a candidate each or, once the
  // threshold is known, a bit.
  __device__ void Sweep(const Borders& borders, float (&turns)[kBuffers][kLoads]) {
    for (int first = begin_; first < end_; first += kBuffers * turn_keys_) {
#pragma unroll
      for (int i = 0; i < kBuffers; ++i) {
        const int turn_begin = first + i * turn_keys_;
        if (turn_begin < end_) {
          SweepTurn(borders, turn_begin, turns[i]);
          LoadTurn(turn_begin + kBuffers * turn_keys_, turns[i]);
        }
      }
    }
    if (Size::kShares && lane_ == 0) {
      atomicAdd(&s_.above, above_);
      if (!fits_) {
        atomicAdd(&s_.inside, inside_);
      }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");  // the table
    __syncthreads();
    above_ = s_.above;
    inside_ = fits_ ? min(s_.inside, share_) : s_.inside;
  }
  __device__ __forceinline__ void SweepTurn(const Borders& borders, int turn_begin,
                                            const float (&turn)[kLoads]) {
#pragma unroll
    for (int i = 0; i < kLoads; i += kGroup) {
      const int first = turn_begin + PlaceInTurn(i);
      if (i < loads_ && first < end_) {
        SweepGroup(borders, first - begin_, turn + i);
      }
    }
  }
  // Of a warp's words from key `first` of the part on.
  __device__ __forceinline__ void SweepGroup(const Borders& borders, int first,
                                             const float* scores) {
    unsigned above[kGroup];
    unsigned inside[kGroup];
    int count = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      above[i] = __ballot_sync(kAllLanes, scores[i] >= borders.above);
      inside[i] = __ballot_sync(kAllLanes, scores[i] >= borders.lowest) & ~above[i];
      count += __popc(inside[i]);
      if (Size::kShares) {
        above_ += __popc(above[i]);
      }
    }
    if (lane_ == 0) {
      const int word = first / kWarpSize;
      *reinterpret_cast<uint4*>(above_words_ + word) =
          make_uint4(above[0], above[1], above[2], above[3]);
      *reinterpret_cast<uint4*>(equal_words_ + word) =
          fits_ ? make_uint4(0U, 0U, 0U, 0U)
                : make_uint4(inside[0], inside[1], inside[2], inside[3]);
    }
    if (!fits_) {
      inside_ += count;
    } else if (count != 0) {
      KeepCandidates(first, scores, inside, count);
    }
  }
  __device__ __forceinline__ void KeepCandidates(int first, const float* scores,
                                                 const unsigned (&inside)[kGroup], int count) {
    int at = lane_ == 0 ? atomicAdd(&s_.inside, count) : 0;
    at = __shfl_sync(kAllLanes, at, 0);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const int place = at + __popc(inside[i] & ((1U << lane_) - 1U));
      if ((inside[i] >> lane_ & 1U) != 0 && place < share_) {
        s_.keys[rank_ * share_ + place] = ScoreKey(scores[i]);
        s_.places[place] = static_cast<typename Size::Place>(first + i * kWarpSize + lane_);
      }
      at += __popc(inside[i]);
    }
  }

  // Counts digits of the row's keys over the cluster, in memory that candidates use otherwise.
  __device__ void FindThresholdOfRow() {
    int* local = reinterpret_cast<int*>(s_.keys);  // and three of the cluster in block 0
    for (int i = thread_; i < (cluster_ > 1 ? 4 : 1) * kScoreBins; i += kThreads) {
      local[i] = 0;
    }
    SyncCluster();
    constexpr int kShifts[] = {21, 10, 0};
    missing_ = k_;
    for (int pass = 0; pass < 3; ++pass) {
      const int shift = kShifts[pass];
      const unsigned digits = pass == 2 ? 1023U : 2047U;
      const unsigned known = pass == 0 ? 0U : ~0U << kShifts[pass - 1];
#pragma unroll 8
      for (int at = begin_ + thread_; at < end_; at += kThreads) {
        const unsigned key = ScoreKey(__ldcg(scores_ + at));
        if ((key & known) == threshold_) {
          atomicAdd(local + (key >> shift & digits), 1);
        }
      }
      __syncthreads();
      int* total = local;
      if (cluster_ > 1) {
        total = InBlock(local, 0) + (pass + 1) * kScoreBins;
        for (int i = thread_; i < kScoreBins; i += kThreads) {
          if (local[i] != 0) {
            atomicAdd(total + i, local[i]);
            local[i] = 0;
          }
        }
        SyncCluster();
      }
      int counts[kBinsEach];
#pragma unroll
      for (int i = 0; i < kBinsEach; ++i) {
        int& bin = total[kScoreBins - 1 - thread_ * kBinsEach - i];
        counts[i] = bin;
        if (cluster_ == 1) {
          bin = 0;
        }
      }
      FindBin<kBinsEach>(counts, missing_);
      threshold_ |= static_cast<unsigned>(s_.bin) << shift;
      missing_ = s_.missing;
    }
  }

  // Tells all blocks of the row what this one has, and sums up what the blocks before have.
  // Afterwards no block touches another's memory.
  __device__ void Exchange() {
    if (thread_ < cluster_) {
      *InBlock(s_.counts + rank_, thread_) = make_int2(above_, inside_);
    }
    const int to = warp_ % cluster_;  // a warp or more a block
    if (fits_ && to != rank_) {
      const unsigned* own = s_.keys + rank_ * share_;
      unsigned* there = InBlock(s_.keys + rank_ * share_, to);
      for (int i = FirstOfWarp(); i < inside_; i += kThreads / cluster_) {
        there[i] = own[i];
      }
    }
    SyncCluster();
    const int2 of_lane = lane_ < rank_ ? s_.counts[lane_] : make_int2(0, 0);  // a block a lane
    above_lower_ = __reduce_add_sync(kAllLanes, of_lane.x);
    equal_lower_ = __reduce_add_sync(kAllLanes, of_lane.y);  // of candidates: corrected later
  }
  // Warps share the candidates of block warp_ % cluster_: where a lane begins.
  __device__ int FirstOfWarp() const {
    return warp_ / cluster_ * kWarpSize + lane_;
  }
  template <typename Body>  // of a key, its block and its index there
  __device__ void ForEachCandidate(const Body& body) const {
    const int block = warp_ % cluster_;
    const int count = cluster_ == 1 ? inside_ : min(s_.counts[block].y, share_);
    for (int i = FirstOfWarp(); i < count; i += kThreads / cluster_) {
      body(s_.keys[block * share_ + i], block, i);
    }
  }

  // Of the bin's keys the upper bits are known, unless it is one of the wide ones.
  __device__ void FindThresholdOfCandidates(int bin) {
    int bits = IsNarrowBin(bin) ? kScoreBinShift : 32;
    threshold_ = IsNarrowBin(bin) ? LowestKey(bin) : 0U;
    for (int pass = 0; bits > 0; ++pass) {
      const int shift = max(bits - kDigitBits, 0);
      const unsigned digits = (1U << (bits - shift)) - 1U;
      const unsigned known = bits == 32 ? 0U : ~0U << bits;
      ForEachCandidate([&](unsigned key, int, int) {
        if ((key & known) == threshold_) {
          atomicAdd(s_.digits[pass] + (key >> shift & digits), 1);
        }
      });
      __syncthreads();
      FindDigit(s_.digits[pass], shift, lane_, missing_, threshold_);
      bits = shift;
    }
  }
  // This block's become bits; those of the blocks before are counted.
  __device__ void MarkCandidates() {
    unsigned lower = 0;
    ForEachCandidate([&](unsigned key, int block, int i) {
      if (key < threshold_) {
        return;
      }
      const bool is_above = key > threshold_;
      if (block == rank_) {
        const int place = s_.places[i];
        atomicOr((is_above ? above_words_ : equal_words_) + place / kWarpSize,
                 1U << (place % kWarpSize));
      } else if (block < rank_) {
        lower += is_above ? 0x10000U : 1U;
      }
    });
    if (cluster_ > 1) {
      lower = __reduce_add_sync(kAllLanes, lower);
      if (lane_ == 0 && lower != 0) {
        atomicAdd(&s_.lower, lower);
      }
    }
    __syncthreads();
    above_lower_ += static_cast<int>(s_.lower >> 16);
    equal_lower_ = static_cast<int>(s_.lower & 0xFFFFU);
  }

  // Of keys equal to the threshold the first are selected; a row has fewer than 2,048 above it.
  __device__ void List() {
    constexpr int kAboveBits = 11;
    constexpr unsigned kAbove = (1U << kAboveBits) - 1U;
    static_assert(kIndexSelectionMax <= 1 << kAboveBits);
    static_assert(kIndexSelectionMax * kThreads <= std::int64_t{1} << (32 - kAboveBits));
    const int words = (end_ - begin_ + kGroupKeys - 1) / kGroupKeys * kGroup;
    const int each = (words + kThreads - 1) / kThreads;
    const int first = min(thread_ * each, words);
    const int last = min(first + each, words);
    unsigned above = 0;
    int equal = 0;
    for (int word = first; word < last; ++word) {
      above += static_cast<unsigned>(__popc(above_words_[word]));
      equal += __popc(equal_words_[word]);
    }
    const unsigned sum = above + (static_cast<unsigned>(min(equal, missing_)) << kAboveBits);
    const unsigned inclusive = InclusiveWarpSum(sum, lane_);
    const WarpSums sums =
        SumOverWarps<kWarps>(__shfl_sync(kAllLanes, inclusive, kWarpSize - 1), s_.warp_sums[1]);
    const unsigned before = sums.before + inclusive - sum;
    const int missing_here = max(missing_ - equal_lower_, 0);
    ListWords(first, last, static_cast<int>(before & kAbove),
              static_cast<int>(before >> kAboveBits), missing_here);
    ClearMaskBehind(words);
    __syncthreads();
    const int place = above_lower_ + min(equal_lower_, missing_);  // of this block's first
    const int selected = static_cast<int>(sums.all & kAbove) +
                         min(static_cast<int>(sums.all >> kAboveBits), missing_here);
    for (int i = thread_; i < min(selected, k_ - place); i += kThreads) {
      const int position = begin_ + s_.list[i];
      output_.List(place + i, position, BlockOf(position));
    }
  }
  // Words [first, last) of a thread, before which so many are above and equal; of those equal the
  // block selects the first `missing`.
  __device__ void ListWords(int first, int last, int above, int equal, int missing) const {
    int place = above + min(equal, missing);
    std::uint32_t* const mask = output_.mask + rank_ * part_ / kWarpSize;
    const int mask_words = output_.mask_words - rank_ * part_ / kWarpSize;
    for (int word = first; word < last; ++word) {
      unsigned chosen = equal_words_[word];
      const int count = __popc(chosen);
      for (int i = count; i > max(missing - equal, 0); --i) {
        chosen &= ~(0x80000000U >> __clz(static_cast<int>(chosen)));  // the highest
      }
      equal += count;
      chosen |= above_words_[word];
      if (word < mask_words) {
        mask[word] = chosen;
      }
      for (; chosen != 0; chosen &= chosen - 1U) {
        if (place < kIndexSelectionMax) {
          s_.list[place] = static_cast<typename Size::Place>(word * kWarpSize +
                                                             __ffs(static_cast<int>(chosen)) - 1);
        }
        ++place;
      }
    }
  }
  // The words of this part behind its last key, and in the last block those behind the row.
  __device__ void ClearMaskBehind(int words) const {
    const int first = rank_ * part_ / kWarpSize;
    const int last = rank_ + 1 == cluster_ ? output_.mask_words
                                           : min(first + part_ / kWarpSize, output_.mask_words);
    for (int word = first + words + thread_; word < last; word += kThreads) {
      output_.mask[word] = 0U;
    }
  }

  Shared<Size>& s_;
  unsigned* above_words_;
  unsigned* equal_words_;
  int cluster_;
  int rank_;
  std::int64_t row_;
  int thread_;
  int lane_;
  int warp_;
  int k_;
  int share_;  // of each block among the candidates
  RowSelection output_;
  const float* scores_;
  const std::int32_t* work_;
  int visible_;
  int part_;  // keys of a block, a multiple of 128
  int begin_;
  int end_;
  int loads_;  // words of a warp in a turn, a multiple of 4
  int turn_keys_;
  bool has_table_ = false;
  bool fits_ = false;
  unsigned threshold_ = 0;  // the k-th highest key, once known
  int missing_ = 0;         // keys to select of the bin, then of those equal to the threshold
  int above_ = 0;           // of a warp, then of the block: keys above the bin or threshold
  int inside_ = 0;          // in it, equal to it
  int above_lower_ = 0;     // of the blocks before
  int equal_lower_ = 0;
};

inline std::int64_t VisibleMax(const SelectTopKParams& params) {
  return params.rows.visible_max > 0 ? std::min(params.rows.visible_max, params.scores.cols)
                                     : params.scores.cols;
}

template <typename Size>
std::int64_t SharedBytes(const KernelParams& p) {
  return static_cast<std::int64_t>(sizeof(Shared<Size>)) + 2 * 4 * std::int64_t{p.words};
}
// Whether a multiprocessor has room for as many blocks as the size wants.
template <typename Size>
bool Fits(const KernelParams& p) {
  constexpr std::int64_t kReservedBytes = 1024;  // of each block
  return (SharedBytes<Size>(p) + kReservedBytes) * Size::kBlocks <= 228 * 1024;
}

// Lets a kernel have clusters of kClusterMax and all of shared memory.
template <auto kKernel>
void AllowClusters() {
  static PerDevice attribute;
  attribute.Once([] {
    const cudaError_t error =
        cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytesMax);
    return error != cudaSuccess
               ? error
               : cudaFuncSetAttribute(kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  });
}

// Blocks in which no thread has a second tile to rotate and absorb.
std::int64_t AbsorbBlocks(const RotateAndAbsorbParams& queries);
// Blocks of clusters of a launch that selects, and so many more that rotate and absorb.
void LaunchBeside(const KernelParams& p, const RotateAndAbsorbParams& queries, int blocks,
                  cudaStream_t stream);

}  // namespace dsa::cuda::index_selection
