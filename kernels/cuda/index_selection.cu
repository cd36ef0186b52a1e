// IndexSelection: a cluster of 1 to 16 blocks a row, each with a contiguous part of its keys.
//
//   1. The histogram tells the bin of the k-th highest score before any score is looked at.
//   2. One sweep writes down what can be selected, the keys above that bin and those in it, in
//   order
//      of position: the list, in shared memory.
//   3. The keys in the bin, the candidates, of all blocks are gathered in each, which finds the
//   exact
//      threshold for itself: 18 bits are left, 9 a pass.
//   4. The list is compacted: keys above the threshold and the first ties go to their final places.
//
// How many keys the list of a row would have is known after 1.  Where they are too many (equal
// scores, a narrow spread, mostly zeros), three counting passes of 11, 11 and 10 bits over the row
// find the threshold instead of 3, and only ties that can be selected are listed.
//
// A histogram of other scores would select wrongly; no place outside the lists is written then.
//
// Reads 4 bytes a key once; with few rows the fixed latency of some ten barriers is the cost.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/index_selection.h"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/row_selection.cuh"
#include "kernels/cuda/score_order.cuh"
#include "kernels/cuda/warp_sums.cuh"
#include "kernels/kv_layout.h"

#include <cooperative_groups.h>

namespace dsa::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kClusterMax = 16;
constexpr int kLoadsMax = 4;     // of a thread in a turn, 4 scores each
constexpr int kListMargin = 4;   // where a thread's four may begin at the last place
constexpr int kTableMax = 1024;  // blocks of a part whose ids are kept
constexpr int kDigitBits = 9;    // of a pass over the candidates
constexpr int kDigits = 1 << kDigitBits;
constexpr int kNanBits = -1;  // no score: its key is 0

// A block's size: threads; keys in the list of a row; turns of scores that are on their way; blocks
// of a multiprocessor; whether blocks may share a row.
struct Wide {  // few rows, in clusters or alone: registers for three turns
  static constexpr int kThreads = 512;
  static constexpr int kListMax = 6144;
  static constexpr int kBuffers = 3;
  static constexpr int kBlocks = 1;
  static constexpr bool kShares = true;
};
struct Paired : Wide {
  static constexpr int kBuffers = 2;
  static constexpr int kBlocks = 2;
};
struct Narrow {  // many short rows: what counts is how many are under way
  static constexpr int kThreads = 256;
  static constexpr int kListMax = 4096;
  static constexpr int kBuffers = 2;
  static constexpr int kBlocks = 4;
  static constexpr bool kShares = false;
};

template <typename Size>
struct Shared {
  static constexpr int kWarps = Size::kThreads / kWarpSize;
  // Key (a score until the sweep has ended) and position.
  uint2 list[Size::kListMax + kListMargin];
  unsigned own[Size::kListMax];                           // the candidates of this block
  unsigned gathered[Size::kShares ? Size::kListMax : 1];  // of the cluster, in order of the blocks
  int digits[kDigits];                                    // 0 between passes
  std::int32_t table[kTableMax];
  unsigned warp_sums[3][kWarps];
  int2 counts[kClusterMax];  // of each block, written by it: above the bin, and in it
  int inside;                // candidates of this block
  unsigned lower;            // of the blocks before: candidates above the threshold, and ties
  // What one thread tells the others.
  int bin;
  int missing;
  int total;

  static_assert(Size::kListMax >= kIndexSelectionMax);
  static_assert(2 * Size::kListMax >= 4 * kScoreBins,
                "the passes over a row have four histograms in the memory of lists");
};

__device__ float NoScore() {
  return __int_as_float(kNanBits);
}

struct KernelParams {
  SelectTopKParams call;
  const std::int32_t* work;
  int cluster;
};

// One row in one block of a cluster.  Every member function is called by all threads.
template <typename Size>
class Selection final {
 public:
  __device__ Selection(const KernelParams& p, Shared<Size>& shared)
      : s_(shared),
        cluster_(Size::kShares ? p.cluster : 1),
        rank_(cluster_ == 1 ? 0 : static_cast<int>(ptx::ClusterRank())),
        row_(blockIdx.x / static_cast<unsigned>(cluster_)),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % kWarpSize),
        warp_(thread_ / kWarpSize),
        k_(static_cast<int>(p.call.k)),
        output_(p.call, row_),
        scores_(p.call.scores.Row(row_)),
        work_(p.work + row_ * kRowWorkInts),
        visible_(p.call.rows.positions.data[row_] + 1),
        part_(((visible_ + cluster_ - 1) / cluster_ + 127) / 128 * 128),
        begin_(min(rank_ * part_, visible_)),
        end_(min(begin_ + part_, visible_)),
        loads_(min(kLoadsMax, (part_ + kThreads * 4 - 1) / (kThreads * 4))),
        turn_keys_(loads_ * kThreads * 4) {}

  __device__ void Run(const KernelParams& p) {
    for (int i = thread_; i < kDigits; i += kThreads) {
      s_.digits[i] = 0;
    }
    if (thread_ == 0) {
      s_.inside = 0;
      s_.lower = 0;
      s_.bin = 0;
      s_.missing = 1;
      s_.total = kListMax + 1;  // where the histogram has no k scores: counted anew
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
    const bool has_nan = __ldcg(work_ + kNanFlag) != 0;
    if (rank_ == 0 && thread_ == 0 && has_nan) {
      p.call.faults.data[row_] |= kRowFaultIndexerNan;
    }
    if (visible_ <= k_ || has_nan) {
      if (cluster_ > 1) {
        ptx::ClusterWait();
      }
      if (rank_ == 0) {
        output_.template SelectFirst<kThreads>(min(k_, visible_), k_);
      }
      return;
    }
    SelectBest();
  }

 private:
  static constexpr int kThreads = Size::kThreads;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kListMax = Size::kListMax;
  static constexpr int kBuffers = Size::kBuffers;
  static constexpr int kBinsEach = kScoreBins / kThreads;
  static constexpr int kDigitsEach = kDigits / kThreads;

  __device__ void SelectBest() {
    float4 turns[kBuffers][kLoadsMax];
#pragma unroll
    for (int i = 0; i < kBuffers; ++i) {
      LoadTurn(begin_ + i * turn_keys_, turns[i]);
    }
    ClearMask();
    int counts[kBinsEach];
#pragma unroll
    for (int i = 0; i < kBinsEach; i += 4) {
      const int4 four = __ldcg(reinterpret_cast<const int4*>(work_ + kScoreBins) - 1 -
                               (thread_ * kBinsEach + i) / 4);
      counts[i] = four.w;
      counts[i + 1] = four.z;
      counts[i + 2] = four.y;
      counts[i + 3] = four.x;
    }
    FindBin<kBinsEach>(counts, k_);
    const int bin = s_.bin;
    missing_ = s_.missing;
    fits_ = s_.total <= kListMax;
    if (cluster_ > 1) {
      ptx::ClusterWait();  // the others have started: their memory may be written
    }
    if (fits_) {
      Sweep(bin, turns);
      Classify(HighestKey(bin));
    } else {
      FindThresholdOfRow();
      SweepTies();
    }
    asm volatile("cp.async.wait_all;" ::: "memory");  // read by others behind the next barrier
    if (cluster_ > 1 && thread_ < cluster_) {
      *InBlock(s_.counts + rank_, thread_) = make_int2(above_, inside_);
    }
    SyncCluster();
    Gather();
    if (fits_) {
      FindThresholdOfCandidates(bin);
      CountLower();
    }
    Compact();
    if (cluster_ > 1) {
      ptx::ClusterWait();  // nobody reads this block's memory any more: Gather announced it
    }
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
    has_table_ = part_ <= kTableMax * kTokensPerBlock;
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
  // The words of this part, and in the last block those behind it.  No bit is set before a barrier.
  __device__ void ClearMask() const {
    const int words = part_ / kWarpSize;
    const int last =
        rank_ + 1 == cluster_ ? output_.mask_words : min((rank_ + 1) * words, output_.mask_words);
    for (int word = rank_ * words + thread_; word < last; word += kThreads) {
      output_.mask[word] = 0U;
    }
  }

  // Four scores from position `at` on; NoScore beyond the part.
  __device__ float4 Load(int at) const {
    float4 four = make_float4(NoScore(), NoScore(), NoScore(), NoScore());
    if (at + 4 <= end_) {
      four = __ldcg(reinterpret_cast<const float4*>(scores_ + at));
    } else if (at < end_) {
      four.x = scores_[at];
      four.y = at + 1 < end_ ? scores_[at + 1] : NoScore();
      four.z = at + 2 < end_ ? scores_[at + 2] : NoScore();
    }
    return four;
  }
  // In a turn a warp has loads_ x 128 keys.
  __device__ int PositionInTurn(int load) const {
    return (warp_ * loads_ + load) * 128 + lane_ * 4;
  }
  __device__ void LoadTurn(int turn_begin, float4 (&to)[kLoadsMax]) const {
#pragma unroll
    for (int i = 0; i < kLoadsMax; ++i) {
      const int at = turn_begin + PositionInTurn(i);
      to[i] = i < loads_ ? Load(at) : make_float4(NoScore(), NoScore(), NoScore(), NoScore());
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
        SumOverWarps<kWarps>(__shfl_sync(kAllLanes, inclusive, kWarpSize - 1), s_.warp_sums[2]);
    int above = static_cast<int>(sums.before + inclusive) - count;
    if (above < missing && missing <= above + count) {
      bool found = false;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (!found && missing <= above + counts[i]) {
          found = true;
          s_.bin = kThreads * kEach - 1 - thread_ * kEach - i;
          s_.missing = missing - above;
          s_.total = above + counts[i];
        }
        above += counts[i];
      }
    }
    __syncthreads();
  }

  // Sums of a value of each warp; two calls in a row take turns with their memory.
  __device__ WarpSums SumInTurn(unsigned warp_value) {
    sums_turn_ ^= 1;
    return SumOverWarps<kWarps>(warp_value, s_.warp_sums[sums_turn_]);
  }

  // All scores in the bin or above it go into the list.
  __device__ void Sweep(int bin, float4 (&turns)[kBuffers][kLoadsMax]) {
    const float lowest = LowestScore(bin);
    int listed = 0;
    for (int first = begin_; first < end_; first += kBuffers * turn_keys_) {
#pragma unroll
      for (int i = 0; i < kBuffers; ++i) {
        const int turn_begin = first + i * turn_keys_;
        if (turn_begin < end_) {
          listed += ListTurn(lowest, turn_begin, listed, turns[i]);
          LoadTurn(turn_begin + kBuffers * turn_keys_, turns[i]);
        }
      }
    }
    above_ = listed;  // and those in the bin, until Classify
    __syncthreads();
  }
  // Returns how many it listed.
  __device__ __forceinline__ int ListTurn(float lowest, int turn_begin, int listed,
                                          const float4 (&turn)[kLoadsMax]) {
    unsigned hits = 0;    // four bits a load
    unsigned counts = 0;  // a byte a load, at most 128 when summed over a warp
#pragma unroll
    for (int i = 0; i < kLoadsMax; ++i) {
      const unsigned four = (turn[i].x >= lowest ? 1U : 0U) | (turn[i].y >= lowest ? 2U : 0U) |
                            (turn[i].z >= lowest ? 4U : 0U) | (turn[i].w >= lowest ? 8U : 0U);
      hits |= four << (4 * i);
      counts |= static_cast<unsigned>(__popc(four)) << (8 * i);
    }
    const unsigned inclusive = InclusiveWarpSum(counts, lane_);
    const unsigned of_warp = __shfl_sync(kAllLanes, inclusive, kWarpSize - 1);
    const unsigned warp_sum =
        (of_warp & 255U) + (of_warp >> 8 & 255U) + (of_warp >> 16 & 255U) + (of_warp >> 24);
    const WarpSums sums = SumInTurn(warp_sum);
    unsigned at = static_cast<unsigned>(listed) + sums.before;
#pragma unroll
    for (int i = 0; i < kLoadsMax; ++i) {
      const unsigned four = hits >> (4 * i) & 15U;
      const unsigned place = at + ((inclusive - counts) >> (8 * i) & 255U);
      if (four != 0 && place + 4 <= kListMax + kListMargin) {
        uint2* to = s_.list + place;
        const auto position = static_cast<unsigned>(turn_begin + PositionInTurn(i));
        if ((four & 1U) != 0) {
          *to++ = make_uint2(__float_as_uint(turn[i].x), position);
        }
        if ((four & 2U) != 0) {
          *to++ = make_uint2(__float_as_uint(turn[i].y), position + 1);
        }
        if ((four & 4U) != 0) {
          *to++ = make_uint2(__float_as_uint(turn[i].z), position + 2);
        }
        if ((four & 8U) != 0) {
          *to++ = make_uint2(__float_as_uint(turn[i].w), position + 3);
        }
      }
      at += of_warp >> (8 * i) & 255U;
    }
    return static_cast<int>(sums.all);
  }
  // Scores of the list become keys; those of the candidates are copied, in any order.
  __device__ void Classify(unsigned highest) {
    const int listed = min(above_, kListMax);
    for (int first = 0; first < listed; first += kThreads) {
      const int i = first + thread_;
      const unsigned key = i < listed ? ScoreKey(__uint_as_float(s_.list[i].x)) : ~0U;
      const bool is_inside = i < listed && key <= highest;
      const unsigned lanes = __ballot_sync(kAllLanes, is_inside);
      int at = 0;
      if (lane_ == 0 && lanes != 0) {
        at = atomicAdd(&s_.inside, __popc(lanes));
      }
      at = __shfl_sync(kAllLanes, at, 0);
      if (i < listed) {
        s_.list[i].x = key;
      }
      if (is_inside) {
        s_.own[at + __popc(lanes & ((1U << lane_) - 1U))] = key;
      }
    }
    __syncthreads();
    inside_ = s_.inside;
    above_ = listed - inside_;
  }

  // Counts digits of the row's keys over the cluster, in memory that the other way uses otherwise.
  __device__ void FindThresholdOfRow() {
    // And three of the cluster, in block 0: where blocks share a row, not where the list will be,
    // which block 0 may begin while others still read.
    int* local = Size::kShares ? reinterpret_cast<int*>(s_.own) : reinterpret_cast<int*>(s_.list);
    for (int i = thread_; i < 4 * kScoreBins; i += kThreads) {
      local[i] = 0;
    }
    SyncCluster();
    int* const of_first = cluster_ == 1 ? local : InBlock(local, 0);
    constexpr int kShifts[] = {21, 10, 0};
    missing_ = k_;
    for (int pass = 0; pass < 3; ++pass) {
      const int shift = kShifts[pass];
      const unsigned digits = pass == 2 ? 1023U : 2047U;
      const unsigned known = pass == 0 ? 0U : ~0U << kShifts[pass - 1];
      for (int at = begin_ + thread_ * 4; at < end_; at += kThreads * 4) {
        const float4 four = Load(at);
        const unsigned keys[] = {ScoreKey(four.x), ScoreKey(four.y), ScoreKey(four.z),
                                 ScoreKey(four.w)};
#pragma unroll
        for (const unsigned key : keys) {
          if (key != 0 && (key & known) == threshold_) {
            atomicAdd(local + (key >> shift & digits), 1);
          }
        }
      }
      __syncthreads();
      int* const total = of_first + (pass + 1) * kScoreBins;
      for (int i = thread_; i < kScoreBins; i += kThreads) {
        if (local[i] != 0) {
          atomicAdd(total + i, local[i]);
          local[i] = 0;
        }
      }
      SyncCluster();
      int counts[kBinsEach];
#pragma unroll
      for (int i = 0; i < kBinsEach; ++i) {
        counts[i] = total[kScoreBins - 1 - thread_ * kBinsEach - i];
      }
      FindBin<kBinsEach>(counts, missing_);
      threshold_ |= static_cast<unsigned>(s_.bin) << shift;
      missing_ = s_.missing;
      __syncthreads();
    }
  }
  // The list, once the threshold is known: keys above it, and as many ties as may be selected.
  __device__ void SweepTies() {
    for (int first = begin_; first < end_; first += kThreads * 4) {
      const int at = first + thread_ * 4;
      const float4 four = Load(at);
      const unsigned keys[] = {ScoreKey(four.x), ScoreKey(four.y), ScoreKey(four.z),
                               ScoreKey(four.w)};
      unsigned counts = 0;  // both in one word
#pragma unroll
      for (const unsigned key : keys) {
        counts += (key > threshold_ ? 0x10000U : 0U) + (key == threshold_ ? 1U : 0U);
      }
      const unsigned inclusive = InclusiveWarpSum(counts, lane_);
      const WarpSums sums = SumInTurn(__shfl_sync(kAllLanes, inclusive, kWarpSize - 1));
      const unsigned before = sums.before + inclusive - counts;
      int above = above_ + static_cast<int>(before >> 16);
      int ties = inside_ + static_cast<int>(before & 0xFFFFU);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool is_tie = keys[i] == threshold_;
        if (keys[i] > threshold_ || (is_tie && ties < missing_)) {
          s_.list[above + min(ties, missing_)] = make_uint2(keys[i], static_cast<unsigned>(at + i));
        }
        above += keys[i] > threshold_ ? 1 : 0;
        ties += is_tie ? 1 : 0;
      }
      above_ += static_cast<int>(sums.all >> 16);
      inside_ += static_cast<int>(sums.all & 0xFFFFU);
    }
    __syncthreads();
  }

  // What the blocks before have, and the candidates of all.
  __device__ void Gather() {
    candidates_ = s_.own;
    candidate_count_ = inside_;
    if (cluster_ == 1) {
      return;
    }
    const int2 of_lane = lane_ < cluster_ ? s_.counts[lane_] : make_int2(0, 0);  // a block a lane
    const auto above_sum =
        static_cast<int>(InclusiveWarpSum(static_cast<unsigned>(of_lane.x), lane_));
    const auto inside_sum =
        static_cast<int>(InclusiveWarpSum(static_cast<unsigned>(of_lane.y), lane_));
    above_lower_ = __shfl_sync(kAllLanes, above_sum - of_lane.x, rank_);
    ties_lower_ = __shfl_sync(kAllLanes, inside_sum - of_lane.y, rank_);
    if (fits_) {
      candidates_ = s_.gathered;
      candidate_count_ = min(__shfl_sync(kAllLanes, inside_sum, kWarpSize - 1), kListMax);
      const int from = warp_ % cluster_;  // a warp or more a block
      const int first = __shfl_sync(kAllLanes, inside_sum - of_lane.y, from);
      const int count = __shfl_sync(kAllLanes, of_lane.y, from);
      const unsigned* remote = InBlock(s_.own, from);
      const int step = kThreads / cluster_;
      for (int i = warp_ / cluster_ * kWarpSize + lane_; i < min(count, kListMax - first);
           i += step) {
        s_.gathered[first + i] = remote[i];
      }
      __syncthreads();
    }
    ptx::ClusterArriveRelease();  // done with the others' memory
  }

  // Of the bin's keys the upper bits are known, unless it is one of the wide ones.
  __device__ void FindThresholdOfCandidates(int bin) {
    int bits = IsNarrowBin(bin) ? kScoreBinShift : 32;
    threshold_ = IsNarrowBin(bin) ? LowestKey(bin) : 0U;
    while (bits > 0) {
      const int shift = max(bits - kDigitBits, 0);
      const unsigned digits = (1U << (bits - shift)) - 1U;
      const unsigned known = bits == 32 ? 0U : ~0U << bits;
      for (int i = thread_; i < candidate_count_; i += kThreads) {
        const unsigned key = candidates_[i];
        if ((key & known) == threshold_) {
          atomicAdd(s_.digits + (key >> shift & digits), 1);
        }
      }
      __syncthreads();
      int counts[kDigitsEach];
#pragma unroll
      for (int i = 0; i < kDigitsEach; ++i) {
        int& digit = s_.digits[kDigits - 1 - thread_ * kDigitsEach - i];
        counts[i] = digit;
        digit = 0;
      }
      FindBin<kDigitsEach>(counts, missing_);
      threshold_ |= static_cast<unsigned>(s_.bin) << shift;
      missing_ = s_.missing;
      bits = shift;
      __syncthreads();
    }
  }
  // Of the candidates of the blocks before, which lie first: those above the threshold, and ties.
  __device__ void CountLower() {
    if (cluster_ == 1) {
      return;
    }
    unsigned counts = 0;
    for (int i = thread_; i < min(ties_lower_, candidate_count_); i += kThreads) {
      const unsigned key = candidates_[i];
      counts += (key > threshold_ ? 0x10000U : 0U) + (key == threshold_ ? 1U : 0U);
    }
    counts = __reduce_add_sync(kAllLanes, counts);
    if (lane_ == 0 && counts != 0) {
      atomicAdd(&s_.lower, counts);
    }
    __syncthreads();
    above_lower_ += static_cast<int>(s_.lower >> 16);
    ties_lower_ = static_cast<int>(s_.lower & 0xFFFFU);
  }

  // Who of the list is selected, in order.
  __device__ void Compact() {
    const int listed = above_ + (fits_ ? inside_ : min(inside_, missing_));
    // A warp has a part of the list, counts it, and then knows its places.
    const int part = (listed + kThreads - 1) / kThreads * kWarpSize;
    const int begin = min(warp_ * part, listed);
    const int end = min(begin + part, listed);
    unsigned counts = 0;
    for (int i = begin + lane_; i < end; i += kWarpSize) {
      const unsigned key = s_.list[i].x;
      counts += (key > threshold_ ? 0x10000U : 0U) + (key == threshold_ ? 1U : 0U);
    }
    const WarpSums sums = SumInTurn(__reduce_add_sync(kAllLanes, counts));
    int above = above_lower_ + static_cast<int>(sums.before >> 16);
    int ties = ties_lower_ + static_cast<int>(sums.before & 0xFFFFU);
    const unsigned lower_lanes = (1U << lane_) - 1U;
    for (int first = begin; first < end; first += kWarpSize) {
      const int i = first + lane_;
      const uint2 entry = i < end ? s_.list[i] : make_uint2(0U, 0U);
      const bool is_above = i < end && entry.x > threshold_;
      const bool is_tie = i < end && entry.x == threshold_;
      const unsigned above_lanes = __ballot_sync(kAllLanes, is_above);
      const unsigned tie_lanes = __ballot_sync(kAllLanes, is_tie);
      const int my_above = above + __popc(above_lanes & lower_lanes);
      const int my_ties = ties + __popc(tie_lanes & lower_lanes);
      const int place = my_above + min(my_ties, missing_);
      if ((is_above || (is_tie && my_ties < missing_)) && place < k_) {
        const auto position = static_cast<int>(entry.y);
        output_.List(place, position, BlockOf(position));
        if (output_.mask != nullptr) {
          atomicOr(output_.mask + position / kWarpSize, 1U << (position % kWarpSize));
        }
      }
      above += __popc(above_lanes);
      ties += __popc(tie_lanes);
    }
  }

  Shared<Size>& s_;
  int cluster_;
  int rank_;
  std::int64_t row_;
  int thread_;
  int lane_;
  int warp_;
  int k_;
  RowSelection output_;
  const float* scores_;
  const std::int32_t* work_;
  int visible_;
  int part_;  // keys of a block, a multiple of 128
  int begin_;
  int end_;
  int loads_;
  int turn_keys_;
  bool has_table_ = false;
  bool fits_ = false;
  int sums_turn_ = 0;
  unsigned threshold_ = 0;  // the k-th highest key, once known
  int missing_ = 0;         // keys to select of the bin, then of those equal to the threshold
  int above_ = 0;           // listed above the bin, then the threshold
  int inside_ = 0;          // in it, equal to it
  int above_lower_ = 0;     // of the blocks before, to be selected
  int ties_lower_ = 0;
  const unsigned* candidates_ = nullptr;
  int candidate_count_ = 0;
};

template <typename Size>
__global__ __launch_bounds__(Size::kThreads, Size::kBlocks) void IndexSelectionKernel(
    const __grid_constant__ KernelParams p) {
  extern __shared__ __align__(16) std::uint8_t memory[];
  Selection<Size>(p, *reinterpret_cast<Shared<Size>*>(memory)).Run(p);
}

template <typename Size>
void Launch(const KernelParams& p, cudaStream_t stream) {
  constexpr int kReservedBytes = 1024;  // of each block
  static_assert((sizeof(Shared<Size>) + kReservedBytes) * Size::kBlocks <= 228 * 1024);
  const auto kernel = IndexSelectionKernel<Size>;
  static PerDevice attribute;
  attribute.Once([&] {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<Size>));
    return error != cudaSuccess
               ? error
               : cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  });
  const auto cluster = static_cast<unsigned>(p.cluster);
  LaunchDependent(kernel,
                  {.grid = static_cast<unsigned>(p.call.scores.rows) * cluster,
                   .threads = Size::kThreads,
                   .shared_bytes = sizeof(Shared<Size>),
                   .cluster = cluster},
                  stream, p);
}

}  // namespace

bool HasAlignedScores(const Matrix<const float>& scores) {
  return reinterpret_cast<std::uintptr_t>(scores.data) % 16 == 0 && scores.row_stride % 4 == 0;
}

int IndexSelectionCluster(std::int64_t rows, std::int64_t visible_max) {
  int cluster = visible_max > 65536 ? 16 : (visible_max > 8192 ? 8 : 1);
  while (cluster > 1 && rows * cluster > kMultiprocessors) {
    cluster /= 2;
  }
  return cluster;
}

void IndexSelection(const SelectTopKParams& params, const std::int32_t* work, int cluster,
                    cudaStream_t stream) {
  DSA_CHECK(params.k <= kIndexSelectionMax, "IndexSelection: K={}, at most {}", params.k,
            kIndexSelectionMax);
  DSA_CHECK(HasAlignedScores(params.scores), "IndexSelection: rows of scores {} apart",
            params.scores.row_stride);
  const KernelParams p{.call = params, .work = work, .cluster = cluster};
  constexpr std::int64_t kShortRow = 32768;  // keys: above, bytes count and not latencies
  const std::int64_t blocks = params.scores.rows * cluster;
  if (cluster == 1 && blocks > 2 * kMultiprocessors && params.scores.cols <= kShortRow) {
    Launch<Narrow>(p, stream);
  } else if (cluster > 2 || blocks > kMultiprocessors) {
    Launch<Paired>(p, stream);
  } else {
    Launch<Wide>(p, stream);
  }
}

}  // namespace dsa::cuda
