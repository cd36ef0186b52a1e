// IndexScores of up to 32 rows, each a unit of its own, as decode has them: latency counts.
//
// As index_scores.cu, but
//   - two warpgroups score, and code is short: what is ahead of the first page and behind the last
//     is what few rows wait for;
//   - the warp of pages reads positions, counts pages and asks for the first ones by itself;
//     tables are asked for before it is known which are read;
//   - a further team of 256 threads absorbs attention's queries (absorb_beside.cuh), where asked
//     to: it shares nothing with the others;
//   - while the first pages are under way, a page that does not exist is scored, of which nothing
//     is written: a decode step meets these instructions once a layer, cold.
#pragma once

#include "kernels/cuda/absorb_beside.cuh"
#include "kernels/cuda/index_scores_block.cuh"

namespace dsa::cuda::index_scores {
namespace {

constexpr int kGroups = 2;
constexpr int kConsumers = kGroups * 128;
constexpr int kConsumerWarps = kConsumers / kWarpSize;
constexpr int kPageWarp = kConsumerWarps;
constexpr int kThreads = kConsumers + 2 * kWarpSize;
constexpr int kStagesMax = 16;
constexpr int kLaneRows = 2;  // of the warp of pages
static_assert(kStagesMax <= kWarpSize && kFewRowsMax <= kLaneRows * kWarpSize);
constexpr int kStarted = 2;  // named barriers
constexpr int kAbsorbing = 3;

struct FewParams : KernelParams {
  int prefetched_ids;  // of the tables, from the first on
};

// By one thread of each warp but that of pages, in turn: an initialisation takes 30 cycles.
__device__ void InitBarriers(const Shared& shared, int stages, int warp) {
#pragma unroll 1
  for (int i = warp; i < 2 * stages + 2 * kRuns + 2 * kQuerySlots; i += kThreads / kWarpSize - 1) {
    const unsigned barrier = shared.full + 8 * i;
    int arrivals = 1;
    if (barrier >= shared.empty && barrier < shared.run_full) {
      arrivals = 4;
    } else if (barrier >= shared.run_empty && barrier < shared.query_full) {
      arrivals = kConsumerWarps + 1;
    }
    ptx::BarrierInit(barrier, arrivals);
  }
  ptx::BarrierInitFence();
}

// Asks for the tables of the first sequences, which most likely are those of the rows: their lines
// come while positions are read, behind which tables are read.
__device__ void PrefetchTables(const FewParams& p, int thread) {
  constexpr int kSectorIds = 8;  // of 32 bytes
  const int first = (static_cast<int>(blockIdx.x) * kConsumers + thread) * kSectorIds;
  if (first < p.prefetched_ids) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p.call.rows.block_tables.data + first));
  }
}

// The warp of pages; a lane two rows.  Runs are of one row, `first` is its position.
class PageWarp final {
 public:
  // Asks for positions and sequences.
  __device__ PageWarp(const FewParams& p, const Shared& shared)
      : p_(p),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        rows_(static_cast<int>(p.call.rows.positions.size)) {
#pragma unroll
    for (int i = 0; i < kLaneRows; ++i) {
      const int row = kLaneRows * lane_ + i;
      if (row < rows_ && static_cast<int>(threadIdx.x) / kWarpSize == kPageWarp) {
        position_[i] = p.call.rows.positions.data[row];
        sequence_[i] = p.call.rows.sequences.data[row];
      }
    }
  }

  __device__ void CopyAll() {
    const int last_pages = PagesAt(position_[1]);
    const auto inclusive = static_cast<int>(
        InclusiveWarpSum(static_cast<unsigned>(PagesAt(position_[0]) + last_pages), lane_));
    end_[0] = inclusive - last_pages;
    end_[1] = inclusive;
    const Share share(__shfl_sync(kAllLanes, inclusive, kWarpSize - 1), false);
    int begin = share.begin;
    int end = share.end;
    while (begin < end) {
      asked_ = false;
      CopyPages(begin, end, share.has_pieces);
      if (!share.has_pieces) {
        break;
      }
      if (!asked_) {
        AskForPiece();
      }
      const int piece = __shfl_sync(kAllLanes, next_piece_, 0);
      begin = min(share.shared_pages + piece * share.piece_pages, share.all_pages);
      end = min(begin + share.piece_pages, share.all_pages);
    }
    Tell(shared_, run_, {.last = -1, .from = 0, .to = 0, .first = 0}, lane_);
  }

 private:
  __device__ static int PagesAt(int position) {
    return (position + kTokensPerBlock) / kTokensPerBlock;
  }
  // Its answer is on its way while pages are copied.
  __device__ void AskForPiece() {
    if (!waited_) {
      ptx::WaitForPredecessors();
      waited_ = true;
    }
    if (lane_ == 0) {
      next_piece_ = atomicAdd(p_.call.work + std::int64_t{rows_} * kRowWorkInts, 1);
    }
    asked_ = true;
  }
  // That of a row.
  __device__ int OfRow(const int (&values)[kLaneRows], int row) const {
    const int first = __shfl_sync(kAllLanes, values[0], row / kLaneRows);
    const int last = __shfl_sync(kAllLanes, values[1], row / kLaneRows);
    return row % kLaneRows == 0 ? first : last;
  }
  // Pages [begin, end) of all rows.
  __device__ void CopyPages(int begin, int end, bool has_pieces) {
    int row = kLaneRows * (__ffs(static_cast<int>(__ballot_sync(kAllLanes, end_[1] > begin))) - 1);
#pragma unroll 1
    for (int page = begin; page < end; ++row) {
      const int position = OfRow(position_, row);
      const int row_end = OfRow(end_, row);
      const int first_page = row_end - PagesAt(position);
      const int sequence = OfRow(sequence_, row);
      if (row_end > page) {  // a row of padding has no page
        const int to = min(end, row_end) - first_page;
        CopyRow({.last = row, .from = page - first_page, .to = to, .first = position},
                p_.call.rows.block_tables.Row(sequence), has_pieces);
        page = first_page + to;
      }
    }
  }
  __device__ void CopyRow(const Run& run, const std::int32_t* table, bool has_pieces) {
    int ids = run.from + lane_ < run.to ? table[run.from + lane_] : 0;
    Tell(shared_, run_, run, lane_);
    int page = run.from;
    if (copied_ == 0) {  // the ring is empty: a lane a page
      const int count = min(p_.layout.stages, run.to - run.from);
      if (lane_ < count) {
        CopyPage(p_, shared_, ids, lane_, shared_.full + 8 * lane_);
      }
      stage_.Advance(count, p_.layout.stages);
      copied_ = count;
      page += count;
    }
#pragma unroll 1
    for (; page < run.to; ++page) {
      const int at = (page - run.from) % kWarpSize;
      if (at == 0 && page > run.from) {
        ids = page + lane_ < run.to ? table[page + lane_] : 0;
      }
      const int id = __shfl_sync(kAllLanes, ids, at);
      // Not before the ring is full for the first time: the wait would delay its pages.
      if (has_pieces && !asked_ && (waited_ || copied_ >= p_.layout.stages)) {
        AskForPiece();
      }
      if (lane_ == 0) {
        ptx::BarrierWait(shared_.empty + 8 * stage_.index, stage_.parity);
        CopyPage(p_, shared_, id, stage_.index, shared_.full + 8 * stage_.index);
      }
      stage_.Advance(1, p_.layout.stages);
      ++copied_;
    }
  }

  const FewParams& p_;
  const Shared& shared_;
  int lane_;
  int rows_;
  int position_[kLaneRows] = {-1, -1};  // of the lane's rows
  int sequence_[kLaneRows] = {};
  int end_[kLaneRows] = {};               // pages before their ends
  Place stage_{.index = 0, .parity = 1};  // the first round waits for nothing
  Place run_{.index = 0, .parity = 1};
  int copied_ = 0;
  int next_piece_ = 0;  // lane 0's
  bool asked_ = false;  // for the piece behind the pages that are being copied
  bool waited_ = false;
};

// A thread of the warp of queries.
__device__ void CopyQueries(const FewParams& p, const Shared& shared) {
  const int query_bytes = PreparedQueryBytes(p.call.padded_heads);
  const int weight_bytes = p.call.padded_heads * 4;
  Place told{.index = 0, .parity = 0};
  Place slot{.index = 0, .parity = 1};
  int row = -1;
  ptx::WaitForPredecessors();
#pragma unroll 1
  while (true) {
    ptx::BarrierWait(shared.run_full + 8 * told.index, told.parity);
    const int next = shared.runs[told.index].last;
    ptx::BarrierArrive(shared.run_empty + 8 * told.index);
    told.Advance(1, kRuns);
    if (next < 0) {
      return;
    }
    if (next == row) {
      continue;
    }
    row = next;
    const unsigned full = shared.query_full + 8 * slot.index;
    ptx::BarrierWait(shared.query_empty + 8 * slot.index, slot.parity);
    ptx::BarrierExpect(full, query_bytes + weight_bytes);
    ptx::CopyBulk(ptx::SharedAddress(shared.queries + slot.index * query_bytes),
                  p.call.queries + std::int64_t{row} * query_bytes, query_bytes, full);
    ptx::CopyBulk(ptx::SharedAddress(shared.weights + slot.index * p.call.padded_heads),
                  p.call.weights + std::int64_t{row} * p.call.padded_heads, weight_bytes, full);
    slot.Advance(1, kQuerySlots);
  }
}

// A thread of a warpgroup.
template <int kHeads>
class Consumer final {
 public:
  __device__ Consumer(const KernelParams& p, const Shared& shared)
      : p_(p),
        shared_(shared),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % kWarpSize),
        token_(FirstKey(thread_ % 128)),
        k_(static_cast<int>(p.call.k)),
        stage_({.index = thread_ / 128, .parity = 0}) {}

  // One loop, so that what is rehearsed and what counts are the same instructions.
  __device__ void ScoreAll() {
    Run run{.last = kRehearsed, .from = 0, .to = 1, .first = 0};
    int page = 0;
    while (true) {
#pragma unroll 1
      for (; page < run.to; page += kGroups) {
        ScorePage(page);
      }
      // Until the next of this group.
      const int skip = run.last == kRehearsed ? stage_.index : page - run.to;
      const Run next = NextRun();
      if (next.last != run.last) {
        LeaveRow(run.last);
        if (next.last < 0) {
          return;
        }
        if (run.last == kRehearsed) {
          ptx::WaitForPredecessors();
        }
        ptx::BarrierWait(shared_.query_full + 8 * slot_.index, slot_.parity);
        row_ = next.last;
        position_ = next.first;
      }
      run = next;
      page = run.from + skip;
    }
  }

 private:
  static constexpr int kQueryBytes = PreparedQueryBytes(kHeads);
  static constexpr int kRehearsed = -2;  // the row and position of the page that does not exist

  __device__ Run NextRun() {
    ptx::BarrierWait(shared_.run_full + 8 * run_.index, run_.parity);
    const Run run = shared_.runs[run_.index];
    __syncwarp();
    if (lane_ == 0) {
      ptx::BarrierArrive(shared_.run_empty + 8 * run_.index);
    }
    run_.Advance(1, kRuns);
    return run;
  }
  // Hands the histogram over and clears it.  A warp adds to adjacent bins: the L2 cache takes what
  // is added to a line at once.
  __device__ void LeaveRow(int row) {
    ptx::NamedBarrierSync(kAllConsumers, kConsumers);  // all scores are counted
    if (row != kRehearsed) {
      if (thread_ == 0) {
        ptx::BarrierArrive(shared_.query_empty + 8 * slot_.index);
      }
      slot_.Advance(1, kQuerySlots);
    }
    std::int32_t* work = p_.call.work + std::int64_t{row_} * kRowWorkInts;
    constexpr int kBinsEach = kScoreBins / kConsumers;
    int counts[kBinsEach];
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) {
      counts[i] = shared_.histograms[thread_ + i * kConsumers];
    }
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) {
      if (counts[i] != 0) {
        shared_.histograms[thread_ + i * kConsumers] = 0;
        atomicAdd(work + thread_ + i * kConsumers, counts[i]);
      }
    }
    ptx::NamedBarrierSync(kAllConsumers, kConsumers);
  }

  // Returns the scale of the key whose score this thread may write.
  __device__ __forceinline__ float TakeKeys(IndexKeys& keys) {
    // Of a barrier at which this warp has not arrived yet the phase before the first has ended.
    const bool is_rehearsal = position_ == kRehearsed;
    ptx::BarrierWait((is_rehearsal ? shared_.empty : shared_.full) + 8 * stage_.index,
                     is_rehearsal ? 1U : stage_.parity);
    const std::uint8_t* page = shared_.ring + stage_.index * IndexerBlock::kBytes;
    LoadIndexKeys(page, token_, lane_, keys);
    const float scale =
        *reinterpret_cast<const float*>(page + IndexerBlock::Scale(token_ + lane_ % 2 * 8));
    // Here and not between the products, which would otherwise wait for one another.
#pragma unroll
    for (auto& of_step : keys) {
#pragma unroll
      for (unsigned& word : of_step) {
        asm volatile("" : "+r"(word));
      }
    }
    __syncwarp();
    if (lane_ == 0 && !is_rehearsal) {
      ptx::BarrierArrive(shared_.empty + 8 * stage_.index);
    }
    stage_.Advance(is_rehearsal ? 0 : kGroups, p_.layout.stages);
    return scale;
  }

  // A score before its scale: of key token_ in even lanes, token_ + 8 in odd ones.
  __device__ __forceinline__ float Sum(const float* weights,
                                       const float (&products)[kHeads / 2]) const {
    const auto* fours = reinterpret_cast<const float4*>(weights) + lane_ % 4;
    float of_keys[2] = {};
#pragma unroll
    for (int i = 0; i < kHeads / 16; ++i) {
      const float4 four = fours[4 * i];
      AddHeads(four.x, four.y, products + 8 * i, of_keys);
      AddHeads(four.z, four.w, products + 8 * i + 4, of_keys);
    }
    const float sum = SumOfPair(of_keys, lane_);
    return sum + __shfl_xor_sync(kAllLanes, sum, 2);
  }

  __device__ __forceinline__ void ScorePage(int page) {
    IndexKeys keys;
    const float scale = TakeKeys(keys);
    float products[kHeads / 2];
    MultiplyIndexKeys<kHeads>(keys, ptx::SharedAddress(shared_.queries) + slot_.index * kQueryBytes,
                              products);
    const float score = Sum(shared_.weights + slot_.index * kHeads, products) * scale;
    const int key = page * kTokensPerBlock + token_ + lane_ % 2 * 8;
    if (lane_ % 4 < 2 && key <= position_) {
      p_.call.scores.Row(row_)[key] = score;
      if (isnan(score)) {
        p_.call.work[std::int64_t{row_} * kRowWorkInts + kNanFlag] = 1;
      } else if (position_ >= k_) {
        atomicAdd(shared_.histograms + ScoreBin(score), 1);
      }
    }
    __syncwarp();
  }

  const KernelParams& p_;
  const Shared& shared_;
  int thread_;
  int lane_;
  int token_;  // of the page, and token_ + 8
  int k_;
  int row_ = 0;
  int position_ = kRehearsed;  // of the row
  Place stage_;
  Place run_{.index = 0, .parity = 0};
  Place slot_{.index = 0, .parity = 0};
};

// What a block absorbs beside it: nothing without tokens.
template <int kTokens>
struct Absorbing {
  using Worker = absorb::Beside<kTokens, 3>;
  static constexpr int kThreads = absorb::kThreads;
  static constexpr int kSharedBytes = Worker::kSharedBytes;
};
template <>
struct Absorbing<0> {
  static constexpr int kThreads = 0;
  static constexpr int kSharedBytes = 0;
};

template <int kHeads, int kTokens>
__global__ __launch_bounds__(kThreads + Absorbing<kTokens>::kThreads, 1) void FewScoresKernel(
    const __grid_constant__ FewParams p, const __grid_constant__ RotateAndAbsorbParams absorbed) {
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  ptx::AllowSuccessor();
  if constexpr (kTokens > 0) {
    if (thread >= kThreads) {
      typename Absorbing<kTokens>::Worker(absorbed, memory + p.layout.bytes, thread - kThreads,
                                          kAbsorbing, static_cast<int>(blockIdx.x),
                                          static_cast<int>(gridDim.x))
          .template Run<false>();
      return;
    }
  }
  const Shared shared(memory, p.layout);
  PageWarp pages(p, shared);
  if (warp != kPageWarp && thread % kWarpSize == 0) {
    InitBarriers(shared, p.layout.stages, min(warp, kPageWarp));
  }
  if (warp < kConsumerWarps) {
    PrefetchTables(p, thread);
#pragma unroll
    for (int i = 0; i < kScoreBins / 4 / kConsumers; ++i) {
      reinterpret_cast<int4*>(shared.histograms)[thread + i * kConsumers] = make_int4(0, 0, 0, 0);
    }
  }
  ptx::NamedBarrierSync(kStarted, kThreads);
  if (warp < kConsumerWarps) {
    Consumer<kHeads>(p, shared).ScoreAll();
  } else if (warp == kPageWarp) {
    pages.CopyAll();
  } else if (thread % kWarpSize == 0) {
    CopyQueries(p, shared);
  }
}

template <int kHeads, int kTokens>
void Launch(const IndexScoresParams& params, const RotateAndAbsorbParams& absorbed,
            cudaStream_t stream) {
  const auto kernel = FewScoresKernel<kHeads, kTokens>;
  static PerDevice attribute;
  attribute.Once([&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kSharedBytesMax);
  });
  const Matrix<const std::int32_t>& tables = params.rows.block_tables;
  constexpr std::int64_t kIdsMax = std::int64_t{1} << 24;
  constexpr int kAbsorbBytes = Absorbing<kTokens>::kSharedBytes;
  FewParams p{};
  p.call = params;
  p.layout = MakeLayout(kHeads, 1, 0, kStagesMax, kGroups, kSharedBytesMax - kAbsorbBytes - 128);
  p.layout.bytes = (p.layout.bytes + 127) / 128 * 128;
  p.prefetched_ids =
      static_cast<int>(std::min((tables.rows - 1) * tables.row_stride + tables.cols, kIdsMax));
  LaunchDependent(kernel,
                  {.grid = kMultiprocessors,
                   .threads = kThreads + Absorbing<kTokens>::kThreads,
                   .shared_bytes = p.layout.bytes + kAbsorbBytes},
                  stream, p, absorbed);
}

}  // namespace
}  // namespace dsa::cuda::index_scores
