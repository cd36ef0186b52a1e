// IndexSelection of few rows, as decode has them: a cluster of 1 to 16 blocks a row, each with at
// most 8,192 of its keys, which stay in registers.
//
//   1. The histogram tells the bin of the k-th highest score.
//   2. A thread, which has 4, 8 or 16 adjacent keys, counts those above that bin.  Those in it, the
//      candidates, go to every block of the row, by messages that a barrier there counts.
//   3. Each block finds the exact threshold among all candidates: 6 bits a pass while there are
//      many, then each of those left is compared with all.
//   4. A thread compares its keys with the threshold, knows how many are selected before, and
//      writes the positions of its own.
//
// Where the bin holds too many (equal scores, a narrow spread), three counting passes of 11, 11 and
// 10 bits over the row find the threshold.
//
// All is latency, some seven barriers.  16 warps of straight code are bound by instructions: a
// cluster's size is known to the compiler, and nothing is written to shared memory that a register
// can keep.
#include "kernels/cuda/index_selection.cuh"

namespace dsa::cuda {
namespace index_selection {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kEachMax = 16;  // keys of a thread
constexpr int kPartKeysMax = kThreads * kEachMax;
constexpr int kBinsEach = kScoreBins / kThreads;
constexpr int kVector = 4;       // scores of a load
constexpr int kRankedMax = 128;  // candidates that are compared with one another
static_assert(kBinsEach == kVector && kEachMax % kVector == 0);

struct FewShared {
  unsigned keys[4 * kScoreBins];  // of candidates, in equal shares for the blocks; or histograms
  int digits[kPasses][kDigits];   // 0 at first, as the following
  unsigned ranked[kRankedMax];    // candidates that are left
  std::int32_t table[kPartKeysMax / kTokensPerBlock];
  unsigned warp_sums[2][kWarps];
  int4 counts[kClusterMax];  // of each block, sent by it: keys above, and in the bin or equal
  std::uint64_t messages;    // barrier: all blocks' are there
  int above;                 // of this block
  int inside;
  unsigned lower;  // candidates of the blocks before: above the threshold, and equal
  // What one thread tells the others.
  int bin;
  int missing;
  int in_bin;
  int ranked_count;
  unsigned threshold;
};

__device__ inline void PrefetchAddress(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}
// Announces bytes to a barrier of another block, and arrives there.
__device__ inline void ExpectThere(unsigned barrier, unsigned bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(barrier),
      "r"(bytes)
      : "memory");
}

// One row in one block of a cluster.  Every member function is called by all threads.
template <int kCluster>
class FewSelection final {
 public:
  __device__ FewSelection(const KernelParams& p, FewShared& shared)
      : s_(shared),
        rank_(kCluster == 1 ? 0 : static_cast<int>(ptx::ClusterRank())),
        row_(blockIdx.x / kCluster),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % kWarpSize),
        warp_(thread_ / kWarpSize),
        k_(static_cast<int>(p.call.k)),
        output_(p.call, row_),
        scores_(p.call.scores.Row(row_)),
        work_(p.work + row_ * kRowWorkInts),
        visible_(min(p.call.rows.positions.data[row_] + 1, kPartKeysMax * kCluster)),
        part_(((visible_ + kCluster - 1) / kCluster + kGroupKeys - 1) / kGroupKeys * kGroupKeys),
        begin_(min(rank_ * part_, visible_)),
        end_(min(begin_ + part_, visible_)),
        each_(part_ <= kThreads * 4 ? 4 : (part_ <= kThreads * 8 ? 8 : kEachMax)),
        first_(begin_ + thread_ * each_) {}

  __device__ void Run(const KernelParams& p) {
    Prepare();
    ptx::WaitForPredecessors();
    ptx::AllowSuccessor();
    const int4 bins =
        __ldcg(reinterpret_cast<const int4*>(work_ + kScoreBins) - 1 - thread_);  // highest last
    const bool has_nan = __ldcg(work_ + kNanFlag) != 0;
    float scores[kEachMax];
    Load(scores);
    if (rank_ == 0 && thread_ == 0) {
      p.call.counts.data[row_] = min(k_, visible_);
      if (has_nan) {
        p.call.faults.data[row_] |= kRowFaultIndexerNan;
      }
    }
    if (visible_ > k_ && !has_nan) {
      const int counts[kBinsEach] = {bins.w, bins.z, bins.y, bins.x};
      SelectBest(scores, counts);
    } else if (rank_ == 0) {
      output_.template SelectFirst<kThreads>(min(k_, visible_), k_);
    }
  }

 private:
  static constexpr int kShare = std::min(4 * kScoreBins / kCluster, 2048);  // candidates of a block
  static constexpr int kTeamWarps = kCluster > kWarps ? 1 : kWarps / kCluster;  // of a block's

  // All that depends on no score.
  __device__ void Prepare() {
#pragma unroll 1
    for (int i = thread_; i < kPasses * kDigits + kRankedMax; i += kThreads) {
      s_.digits[0][i] = 0;
    }
    if (thread_ == 0) {
      s_.above = 0;
      s_.inside = 0;
      s_.lower = 0;
      s_.ranked_count = 0;
      s_.threshold = ~0U;
      s_.bin = 0;
      s_.missing = 1;
      s_.in_bin = kShare + 1;  // where the histogram has no k scores: counted anew
      if (kCluster > 1) {
        ptx::BarrierInit(ptx::SharedAddress(&s_.messages), kCluster);
        ptx::BarrierInitFence();
      }
    }
    if (kCluster > 1) {
      ptx::ClusterArrive();
    }
    // The ids of the part's blocks.
    const int blocks = (end_ - begin_ + kTokensPerBlock - 1) / kTokensPerBlock;
    if (thread_ < blocks) {
      ptx::CopyAsync4(ptx::SharedAddress(s_.table + thread_),
                      output_.table + begin_ / kTokensPerBlock + thread_);
    }
    // What is read behind the wait, so that its address is translated by then; not its value.
    PrefetchAddress(work_ + kScoreBins - kBinsEach * (thread_ + 1));
    if (first_ < end_) {
      PrefetchAddress(scores_ + first_);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    if (kCluster > 1) {
      ptx::ClusterWait();  // the others have started: their memory may be written
    }
  }

  // NoScore beyond the part.
  __device__ __forceinline__ void Load(float (&scores)[kEachMax]) const {
#pragma unroll
    for (int i = 0; i < kEachMax; i += kVector) {
      float4 four = make_float4(NoScore(), NoScore(), NoScore(), NoScore());
      if (i < each_ && first_ + i < end_) {
        four = __ldcg(reinterpret_cast<const float4*>(scores_ + first_ + i));
      }
      scores[i] = four.x;
      scores[i + 1] = four.y;
      scores[i + 2] = four.z;
      scores[i + 3] = four.w;
    }
    if (first_ + each_ > end_) {
#pragma unroll
      for (int i = 0; i < kEachMax; ++i) {
        scores[i] = first_ + i < end_ ? scores[i] : NoScore();
      }
    }
  }

  __device__ __forceinline__ void SelectBest(const float (&scores)[kEachMax],
                                             const int (&counts)[kBinsEach]) {
    FindBin(counts, k_);
    const int bin = s_.bin;
    missing_ = s_.missing;
    const bool fits = s_.in_bin <= kShare;
    Borders borders{.lowest = LowestScore(bin),
                    .above = bin + 1 == kScoreBins ? NoScore() : LowestScore(bin + 1)};
    if (!fits) {
      FindThresholdOfRow(scores);
      borders = {.lowest = ScoreOfKey(threshold_), .above = ScoreOfKey(threshold_ + 1U)};
    }
    Count(borders, scores, fits);
    if (kCluster > 1) {
      Exchange(fits);
    }
    if (fits) {
      FindThresholdOfCandidates(bin, s_.in_bin);
      CountLower();
    }
    Write(scores, fits);
  }

  template <typename T>
  __device__ T* InBlock(T* here, int rank) const {
    return cg::this_cluster().map_shared_rank(here, rank);
  }
  __device__ void SyncCluster() const {
    if (kCluster > 1) {
      cg::this_cluster().sync();
    } else {
      __syncthreads();
    }
  }

  // Over the warps before, of what their last lanes have; two calls in a row with different arrays.
  __device__ unsigned SumOfWarpsBefore(unsigned inclusive, unsigned* sums) const {
    if (lane_ == kWarpSize - 1) {
      sums[warp_] = inclusive;
    }
    __syncthreads();
    return __reduce_add_sync(kAllLanes, lane_ < warp_ ? sums[lane_] : 0U);
  }

  // From the highest down, a thread has four bins: where does the count reach `missing`?
  __device__ void FindBin(const int (&counts)[kBinsEach], int missing) {
    const int count = counts[0] + counts[1] + counts[2] + counts[3];
    const unsigned inclusive = InclusiveWarpSum(static_cast<unsigned>(count), lane_);
    int above = static_cast<int>(SumOfWarpsBefore(inclusive, s_.warp_sums[0]) + inclusive) - count;
    if (above < missing && missing <= above + count) {
      int i = 0;
      int in_bin = counts[0];
#pragma unroll
      for (int next = 1; next < kBinsEach; ++next) {
        if (i == next - 1 && missing > above + in_bin) {
          above += in_bin;
          in_bin = counts[next];
          i = next;
        }
      }
      s_.bin = kScoreBins - 1 - thread_ * kBinsEach - i;
      s_.missing = missing - above;
      s_.in_bin = in_bin;
    }
    __syncthreads();
  }

  // Keys of this block from borders.above on, and those from borders.lowest on but not from
  // borders.above on, which are candidates where these fit.
  __device__ __forceinline__ void Count(const Borders& borders, const float (&scores)[kEachMax],
                                        bool fits) {
    unsigned above = 0;
    unsigned inside = 0;  // a bit a key
#pragma unroll
    for (int first = 0; first < kEachMax; first += kVector) {
      if (first < each_) {
#pragma unroll
        for (int i = first; i < first + kVector; ++i) {
          above += scores[i] >= borders.above ? 1U : 0U;
          inside |= scores[i] >= borders.lowest ? 1U << i : 0U;
          inside &= scores[i] >= borders.above ? ~(1U << i) : ~0U;
        }
      }
    }
    if (inside != 0) {
      int at = atomicAdd(&s_.inside, __popc(inside));
      if (fits) {
        unsigned* const keys = s_.keys + rank_ * kShare;
#pragma unroll
        for (int first = 0; first < kEachMax; first += kVector) {
          if ((inside >> first & ((1U << kVector) - 1U)) != 0) {
#pragma unroll
            for (int i = first; i < first + kVector; ++i) {
              if ((inside >> i & 1U) != 0 && at < kShare) {
                keys[at++] = ScoreKey(scores[i]);
              }
            }
          }
        }
      }
    }
    above = __reduce_add_sync(kAllLanes, above);
    if (lane_ == 0 && above != 0) {
      atomicAdd(&s_.above, static_cast<int>(above));
    }
    __syncthreads();
    inside_ = fits ? min(s_.inside, kShare) : s_.inside;
  }

  // Sends to every block of the row, by a warp each, how many this one has, and its candidates, and
  // sums up what the blocks before have.
  __device__ void Exchange(bool fits) {
    constexpr int kChunk = 16;  // bytes
    const unsigned barrier = ptx::SharedAddress(&s_.messages);
    const int chunks = fits ? (inside_ * 4 + kChunk - 1) / kChunk : 0;
    if (warp_ < kCluster) {
      const auto to = static_cast<unsigned>(warp_);
      const unsigned there = ptx::AddressInBlock(barrier, to);
      const int sent = warp_ != rank_ ? chunks : 0;
      if (lane_ == 0) {
        ExpectThere(there, static_cast<unsigned>((1 + sent) * kChunk));
        ptx::StoreInBlock(
            ptx::AddressInBlock(ptx::SharedAddress(s_.counts + rank_), to),
            make_float4(__int_as_float(s_.above), __int_as_float(inside_), 0.0F, 0.0F), there);
      }
#pragma unroll 1
      for (int i = lane_; i < sent; i += kWarpSize) {
        const auto* own = reinterpret_cast<const float4*>(s_.keys + rank_ * kShare) + i;
        ptx::StoreInBlock(ptx::AddressInBlock(ptx::SharedAddress(own), to), *own, there);
      }
    }
    ptx::BarrierWait(barrier, 0);
    const int4 of_lane = lane_ < rank_ ? s_.counts[lane_] : int4{};  // a block a lane
    above_lower_ = __reduce_add_sync(kAllLanes, of_lane.x);
    equal_lower_ = __reduce_add_sync(kAllLanes, of_lane.y);  // of candidates: corrected later
  }

  // Warps share the candidates of block warp_ % kCluster.
  template <typename Body>  // of a key
  __device__ __forceinline__ void ForEachCandidate(const Body& body) const {
    const int block = warp_ % kCluster;
    const int count = kCluster == 1 ? inside_ : s_.counts[block].y;
#pragma unroll 1
    for (int i = warp_ / kCluster * kWarpSize + lane_; i < count; i += kTeamWarps * kWarpSize) {
      body(s_.keys[block * kShare + i]);
    }
  }
  // Of the bin's keys the upper bits are known, unless it is one of the wide ones.
  __device__ void FindThresholdOfCandidates(int bin, int in_bin) {
    int bits = IsNarrowBin(bin) ? kScoreBinShift : 32;
    threshold_ = IsNarrowBin(bin) ? LowestKey(bin) : 0U;
#pragma unroll 1
    for (int pass = 0; bits > 0 && in_bin > kRankedMax; ++pass) {
      const int shift = max(bits - kDigitBits, 0);
      const unsigned digits = (1U << (bits - shift)) - 1U;
      const unsigned known = bits == 32 ? 0U : ~0U << bits;
      ForEachCandidate([&](unsigned key) {
        if ((key & known) == threshold_) {
          atomicAdd(s_.digits[pass] + (key >> shift & digits), 1);
        }
      });
      __syncthreads();
      in_bin = FindDigit(s_.digits[pass], shift, lane_, missing_, threshold_);
      bits = shift;
    }
    if (bits > 0) {
      RankCandidates(bits == 32 ? 0U : ~0U << bits);
    }
  }
  // Of the candidates whose `known` bits are the threshold's: which one has as many above it as are
  // to be selected?
  __device__ void RankCandidates(unsigned known) {
    ForEachCandidate([&](unsigned key) {
      if ((key & known) == threshold_) {
        const int place = atomicAdd(&s_.ranked_count, 1);
        if (place < kRankedMax) {
          s_.ranked[place] = key;
        }
      }
    });
    __syncthreads();
    const int count = min(s_.ranked_count, kRankedMax);
    if (thread_ < count) {
      const unsigned key = s_.ranked[thread_];
      int above = 0;
      int equal = 0;
#pragma unroll 2
      for (int i = 0; i < count; i += kVector) {  // behind the last are keys of 0
        const uint4 others = *reinterpret_cast<const uint4*>(s_.ranked + i);
        above += (others.x > key ? 1 : 0) + (others.y > key ? 1 : 0) + (others.z > key ? 1 : 0) +
                 (others.w > key ? 1 : 0);
        equal += (others.x == key ? 1 : 0) + (others.y == key ? 1 : 0) + (others.z == key ? 1 : 0) +
                 (others.w == key ? 1 : 0);
      }
      if (above < missing_ && missing_ <= above + equal) {
        s_.threshold = key;
        s_.missing = missing_ - above;
      }
    }
    __syncthreads();
    threshold_ = s_.threshold;
    missing_ = s_.missing;
  }
  // Candidates of the blocks before; read behind the next barrier.
  __device__ void CountLower() {
    if (kCluster > 1 && warp_ % kCluster < rank_) {
      unsigned lower = 0;
      ForEachCandidate([&](unsigned key) {
        lower += key > threshold_ ? 0x10000U : (key == threshold_ ? 1U : 0U);
      });
      lower = __reduce_add_sync(kAllLanes, lower);
      if (lane_ == 0 && lower != 0) {
        atomicAdd(&s_.lower, lower);
      }
    }
  }

  // Counts digits of the row's keys over the cluster, in memory that candidates use otherwise.
  __device__ __forceinline__ void FindThresholdOfRow(const float (&scores)[kEachMax]) {
    int* local = reinterpret_cast<int*>(s_.keys);  // and three of the cluster in block 0
#pragma unroll 1
    for (int i = thread_; i < 4 * kScoreBins; i += kThreads) {
      local[i] = 0;
    }
    SyncCluster();
    missing_ = k_;
#pragma unroll 1
    for (int pass = 0; pass < 3; ++pass) {
      const int shift = pass == 0 ? 21 : (pass == 1 ? 10 : 0);
      const unsigned digits = pass == 2 ? 1023U : 2047U;
      const unsigned known = pass == 0 ? 0U : ~0U << (pass == 1 ? 21 : 10);
#pragma unroll
      for (int i = 0; i < kEachMax; ++i) {
        const unsigned key = ScoreKey(scores[i]);
        if (key != 0 && (key & known) == threshold_) {  // 0: no score
          atomicAdd(local + (key >> shift & digits), 1);
        }
      }
      __syncthreads();
      int* total = local;
      if (kCluster > 1) {
        total = InBlock(local, 0) + (pass + 1) * kScoreBins;
#pragma unroll 1
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
        if (kCluster == 1) {
          bin = 0;
        }
      }
      FindBin(counts, missing_);
      threshold_ |= static_cast<unsigned>(s_.bin) << shift;
      missing_ = s_.missing;
    }
  }

  // Of keys equal to the threshold the first are selected; a row has fewer than 2,048 above it.
  __device__ __forceinline__ void Write(const float (&scores)[kEachMax], bool fits) {
    constexpr int kAboveBits = 11;
    constexpr unsigned kAbove = (1U << kAboveBits) - 1U;
    static_assert(kIndexSelectionMax <= 1 << kAboveBits);
    static_assert(kIndexSelectionMax * kThreads <= std::int64_t{1} << (32 - kAboveBits));
    const float border = ScoreOfKey(threshold_);
    unsigned chosen = 0;
    unsigned equal = 0;
#pragma unroll
    for (int first = 0; first < kEachMax; first += kVector) {
      if (first < each_) {
#pragma unroll
        for (int i = first; i < first + kVector; ++i) {
          chosen |= scores[i] > border ? 1U << i : 0U;
          equal |= scores[i] == border ? 1U << i : 0U;
        }
      }
    }
    const auto equals = static_cast<unsigned>(min(__popc(equal), missing_));
    const unsigned sum = static_cast<unsigned>(__popc(chosen)) + (equals << kAboveBits);
    const unsigned inclusive = InclusiveWarpSum(sum, lane_);
    const unsigned before = SumOfWarpsBefore(inclusive, s_.warp_sums[1]) + inclusive - sum;
    if (fits) {
      above_lower_ += static_cast<int>(s_.lower >> 16);
      equal_lower_ = static_cast<int>(s_.lower & 0xFFFFU);
    }
    const int equal_before = equal_lower_ + static_cast<int>(before >> kAboveBits);
#pragma unroll 1
    for (int left = missing_ - equal_before; left > 0 && equal != 0; --left) {
      chosen |= equal & (0U - equal);
      equal &= equal - 1U;
    }
    int place = above_lower_ + static_cast<int>(before & kAbove) + min(equal_before, missing_);
    if (output_.mask_words > 0) {
      WriteMask(chosen);
    }
    const std::int32_t block =
        s_.table[min((first_ - begin_) / kTokensPerBlock, kPartKeysMax / kTokensPerBlock - 1)];
#pragma unroll 1
    for (; chosen != 0; chosen &= chosen - 1U) {
      if (place < k_) {
        output_.List(place, first_ + __ffs(static_cast<int>(chosen)) - 1, block);
      }
      ++place;
    }
  }
  // Lanes put their bits together to words; words behind the keys become 0.
  __device__ void WriteMask(unsigned chosen) const {
    const int lanes = kWarpSize / each_;  // of a word
    unsigned word = chosen << (lane_ % lanes * each_);
#pragma unroll 1
    for (int apart = 1; apart < lanes; apart *= 2) {
      word |= __shfl_xor_sync(kAllLanes, word, apart);
    }
    const int at = begin_ / kWarpSize + thread_ / lanes;
    const int part_end = (rank_ + 1) * part_ / kWarpSize;
    const int end = rank_ + 1 == kCluster ? output_.mask_words : min(part_end, output_.mask_words);
    if (lane_ % lanes == 0 && first_ < end_ && at < end) {
      output_.mask[at] = word;
    }
    const int words = (end_ - begin_ + kWarpSize - 1) / kWarpSize;
#pragma unroll 1
    for (int i = rank_ * part_ / kWarpSize + words + thread_; i < end; i += kThreads) {
      output_.mask[i] = 0U;
    }
  }

  FewShared& s_;
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
  int each_;                // keys of a thread
  int first_;               // of them
  unsigned threshold_ = 0;  // the k-th highest key, once known
  int missing_ = 0;         // keys to select of the bin, then of those equal to the threshold
  int inside_ = 0;          // of this block in the bin, or equal to the threshold
  int above_lower_ = 0;     // of the blocks before
  int equal_lower_ = 0;
};

template <int kCluster>
__global__ __launch_bounds__(kThreads,
                             1) void FewSelectionKernel(const __grid_constant__ KernelParams p) {
  extern __shared__ __align__(16) std::uint8_t memory[];
  FewSelection<kCluster>(p, *reinterpret_cast<FewShared*>(memory)).Run(p);
}

template <int kCluster>
void Launch(const KernelParams& p, cudaStream_t stream) {
  const auto kernel = FewSelectionKernel<kCluster>;
  AllowClusters<FewSelectionKernel<kCluster>>();
  LaunchDependent(kernel,
                  {.grid = static_cast<unsigned>(p.call.scores.rows) * kCluster,
                   .threads = kThreads,
                   .shared_bytes = sizeof(FewShared),
                   .cluster = kCluster},
                  stream, p);
}

// The most blocks that a row of so many keys can make use of, 0 where they are too many.  Clusters
// of 4 and more leave some multiprocessors of a GPC without one, and all are to run at once.
int ClusterOf(std::int64_t rows, std::int64_t visible_max) {
  constexpr std::int64_t kBlocksOfLarge = 112;
  for (const std::int64_t blocks_of_large : {kBlocksOfLarge, std::int64_t{kMultiprocessors}}) {
    for (const int cluster : {8, 16, 4, 2, 1}) {
      const std::int64_t blocks_max = cluster >= 4 ? blocks_of_large : kMultiprocessors;
      if (rows * cluster <= blocks_max && visible_max <= kPartKeysMax * cluster) {
        return cluster;
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace index_selection

bool IndexSelectionOfFew(const SelectTopKParams& params, const std::int32_t* work,
                         cudaStream_t stream) {
  using namespace index_selection;
  DSA_CHECK(params.k <= kIndexSelectionMax, "IndexSelection: K={}, at most {}", params.k,
            kIndexSelectionMax);
  const bool has_vectors = reinterpret_cast<std::uintptr_t>(params.scores.data) % 16 == 0 &&
                           params.scores.row_stride % kVector == 0 &&
                           params.scores.cols % kVector == 0;
  const KernelParams p{.call = params, .work = work, .cluster = 0, .words = 0};
  switch (has_vectors ? ClusterOf(params.scores.rows, VisibleMax(params)) : 0) {
    case 1: Launch<1>(p, stream); return true;
    case 2: Launch<2>(p, stream); return true;
    case 4: Launch<4>(p, stream); return true;
    case 8: Launch<8>(p, stream); return true;
    case 16: Launch<16>(p, stream); return true;
    default: return false;
  }
}

}  // namespace dsa::cuda
