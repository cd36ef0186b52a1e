// IndexScores: one block a multiprocessor works through pages, 64 keys with their scales, of which
// it takes an equal share of the first 3/4 of all pages of all rows, in order, and then pieces of
// the rest from a counter, since multiprocessors differ in bandwidth.  Few pages are shared out
// equally.
//
//   3 warpgroups   page i of the block is group i % 3's.  A = keys, in registers; B = queries in
//                  shared memory (index_products.cuh)
//   warp 12        copies pages into a ring, 8,448 contiguous bytes each, scales included; tells
//                  the others by a second ring which pages of which rows come next
//   warp 13        copies the queries of the rows told, one unit of rows ahead
//
// A unit is up to `unit_rows` rows of one sequence at consecutive positions: their keys are read
// once.  A score's bits depend on its key and query alone.
#include "kernels/cuda/index_scores_block.cuh"

namespace dsa::cuda {
namespace index_scores {
namespace {

constexpr int kGroups = 3;
constexpr int kConsumers = kGroups * 128;
constexpr int kConsumerWarps = kConsumers / kWarpSize;
constexpr int kPageWarp = kConsumerWarps;
constexpr int kThreads = kConsumers + 128;  // two warps of the last group have no work
constexpr int kConsumerRegisters = 152;
constexpr int kProducerRegisters = 56;
static_assert(kConsumers * kConsumerRegisters + 128 * kProducerRegisters <= kThreads * 128);
constexpr int kStagesMax = 24;
// All threads: the pages of a unit count at its last row.
__device__ void CountPages(const Shared& shared, int rows, int unit_rows) {
  const auto thread = static_cast<int>(threadIdx.x);
  const auto pages_of = [&](int row) {
    const bool is_last =
        row + 1 == rows || (row + 1) % unit_rows == 0 || !shared.Continues(row + 1);
    return is_last ? (shared.positions[row] + kTokensPerBlock) / kTokensPerBlock : 0;
  };
  const int each = (rows + kThreads - 1) / kThreads;
  const int begin = min(thread * each, rows);
  const int end = min(begin + each, rows);
  unsigned sum = 0;
  for (int row = begin; row < end; ++row) {
    sum += static_cast<unsigned>(pages_of(row));
  }
  const unsigned inclusive = InclusiveWarpSum(sum, thread % kWarpSize);
  const WarpSums warps = SumOverWarps<kThreads / kWarpSize>(
      __shfl_sync(kAllLanes, inclusive, kWarpSize - 1), reinterpret_cast<unsigned*>(shared.runs));
  auto before = static_cast<int>(warps.before + inclusive - sum);
  for (int row = begin; row < end; ++row) {
    before += pages_of(row);
    shared.first_page[row + 1] = before;
  }
  if (thread == 0) {
    shared.first_page[0] = 0;
  }
}

// Warp 12.
class PageProducer final {
 public:
  __device__ PageProducer(const KernelParams& p, const Shared& shared, const Share& share)
      : p_(p), shared_(shared), share_(share), lane_(static_cast<int>(threadIdx.x) % kWarpSize) {}

  __device__ void CopyAll() {
    int begin = share_.begin;
    int end = share_.end;
    while (begin < end) {
      asked_ = false;
      CopyPages(begin, end);
      if (!share_.has_pieces) {
        break;
      }
      if (!asked_) {
        AskForPiece();
      }
      const int piece = __shfl_sync(kAllLanes, next_piece_, 0);
      begin = min(share_.shared_pages + piece * share_.piece_pages, share_.all_pages);
      end = min(begin + share_.piece_pages, share_.all_pages);
    }
    Tell(shared_, run_, {.last = -1, .from = 0, .to = 0, .first = 0}, lane_);
  }

 private:
  // Its answer is on its way while pages are copied.
  __device__ void AskForPiece() {
    if (!waited_) {
      ptx::WaitForPredecessors();
      waited_ = true;
    }
    if (lane_ == 0) {
      next_piece_ = atomicAdd(p_.call.work + p_.call.rows.positions.size * kRowWorkInts, 1);
    }
    asked_ = true;
  }
  __device__ void CopyNext(std::int32_t id) {
    // Not before the ring is full for the first time: the wait would delay its pages.
    if (share_.has_pieces && !asked_ && (waited_ || copied_ == p_.layout.stages)) {
      AskForPiece();
    }
    if (lane_ == 0) {
      const unsigned full = shared_.full + 8 * stage_.index;
      ptx::BarrierWait(shared_.empty + 8 * stage_.index, stage_.parity);
      CopyPage(p_, shared_, id, stage_.index, full);
    }
    stage_.Advance(1, p_.layout.stages);
    ++copied_;
  }
  __device__ void CopyPages(int begin, int end) {
    const auto rows = static_cast<int>(p_.call.rows.positions.size);
    int row = 0;  // the last with first_page[row] <= begin
    for (int step = static_cast<int>(kIndexScoreRowsMax) / 2; step > 0; step /= 2) {
      if (row + step < rows && shared_.first_page[row + step] <= begin) {
        row += step;
      }
    }
    for (int page = begin; page < end; ++row) {
      const int first_page = shared_.first_page[row];
      const int row_end = min(end, shared_.first_page[row + 1]);
      if (row_end <= page) {
        continue;  // not the last of a unit
      }
      Tell(shared_, run_,
           {.last = row,
            .from = page - first_page,
            .to = row_end - first_page,
            .first = shared_.FirstOfUnit(row, p_.call.unit_rows)},
           lane_);
      const std::int32_t* table = p_.call.rows.block_tables.Row(shared_.sequences[row]);
      for (; page < row_end; page += kWarpSize) {
        const std::int32_t ids = page + lane_ < row_end ? table[page - first_page + lane_] : 0;
        const int count = min(kWarpSize, row_end - page);
        for (int i = 0; i < count; ++i) {
          CopyNext(__shfl_sync(kAllLanes, ids, i));
        }
      }
      page = row_end;
    }
  }

  const KernelParams& p_;
  const Shared& shared_;
  const Share& share_;
  int lane_;
  Place stage_{.index = 0, .parity = 1};  // the first round waits for nothing
  Place run_{.index = 0, .parity = 1};
  int copied_ = 0;
  int next_piece_ = 0;  // lane 0's
  bool asked_ = false;  // for the piece behind the pages that are being copied
  bool waited_ = false;
};

// A thread of warp 13.
__device__ void CopyQueries(const KernelParams& p, const Shared& shared) {
  const int query_bytes = PreparedQueryBytes(p.call.padded_heads);
  const int weight_bytes = p.call.padded_heads * 4;
  Place told{.index = 0, .parity = 0};
  Place slot{.index = 0, .parity = 1};
  int unit = -1;
  ptx::WaitForPredecessors();
  while (true) {
    ptx::BarrierWait(shared.run_full + 8 * told.index, told.parity);
    const Run run = shared.runs[told.index];
    ptx::BarrierArrive(shared.run_empty + 8 * told.index);
    told.Advance(1, kRuns);
    if (run.last < 0) {
      return;
    }
    if (run.last == unit) {
      continue;
    }
    unit = run.last;
    const unsigned full = shared.query_full + 8 * slot.index;
    const int rows = run.last - run.first + 1;
    const int place = slot.index * p.call.unit_rows;
    ptx::BarrierWait(shared.query_empty + 8 * slot.index, slot.parity);
    ptx::BarrierExpect(full, rows * (query_bytes + weight_bytes));
    ptx::CopyBulk(ptx::SharedAddress(shared.queries + place * query_bytes),
                  p.call.queries + std::int64_t{run.first} * query_bytes, rows * query_bytes, full);
    ptx::CopyBulk(ptx::SharedAddress(shared.weights + place * p.call.padded_heads),
                  p.call.weights + std::int64_t{run.first} * p.call.padded_heads,
                  rows * weight_bytes, full);
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
        stage_({.index = __shfl_sync(kAllLanes, thread_ / 128, 0), .parity = 0}) {}

  __device__ void ScoreAll() {
    int skip = stage_.index;  // pages until this group's next
    Run unit{.last = -1, .from = 0, .to = 0, .first = 0};
    while (true) {
      const Run run = NextRun();
      if (run.last != unit.last) {
        if (unit.last >= 0) {
          LeaveUnit(unit);
        }
        if (run.last < 0) {
          return;
        }
        ptx::BarrierWait(shared_.query_full + 8 * slot_.index, slot_.parity);
        unit = run;
        first_row_ = unit.first;
        first_position_ = shared_.positions[unit.first];
      }
      int page = run.from + skip;
      if (unit.last - unit.first + 1 == kUnit && first_position_ >= k_) {
        page = ScorePagePairs(run, page);
      }
      for (; page < run.to; page += kGroups) {
        ScorePage(unit, page);
      }
      skip = page - run.to;
    }
  }

 private:
  static constexpr int kQueryBytes = PreparedQueryBytes(kHeads);
  static constexpr int kUnit = kRowGroupMax;

  __device__ Run NextRun() {
    ptx::BarrierWait(shared_.run_full + 8 * run_.index, run_.parity);
    Run run = shared_.runs[run_.index];
    run.last = __shfl_sync(kAllLanes, run.last, 0);
    run.from = __shfl_sync(kAllLanes, run.from, 0);
    run.to = __shfl_sync(kAllLanes, run.to, 0);
    run.first = __shfl_sync(kAllLanes, run.first, 0);
    __syncwarp();
    if (lane_ == 0) {
      ptx::BarrierArrive(shared_.run_empty + 8 * run_.index);
    }
    run_.Advance(1, kRuns);
    return run;
  }
  // Hands the histograms over and clears them.
  __device__ void LeaveUnit(const Run& unit) {
    ptx::NamedBarrierSync(kAllConsumers, kConsumers);  // all scores are counted
    if (thread_ == 0) {
      ptx::BarrierArrive(shared_.query_empty + 8 * slot_.index);
    }
    slot_.Advance(1, kQuerySlots);
    const int rows = unit.last - unit.first + 1;
    auto* fours = reinterpret_cast<int4*>(shared_.histograms);
    std::int32_t* work = p_.call.work + std::int64_t{unit.first} * kRowWorkInts;
    for (int i = thread_; i < rows * kScoreBins / 4; i += kConsumers) {
      const int4 counts = fours[i];
      if ((counts.x | counts.y | counts.z | counts.w) != 0) {
        fours[i] = make_int4(0, 0, 0, 0);
        std::int32_t* to = work + 4 * i / kScoreBins * kRowWorkInts + 4 * i % kScoreBins;
        AddCount(to, counts.x);
        AddCount(to + 1, counts.y);
        AddCount(to + 2, counts.z);
        AddCount(to + 3, counts.w);
      }
    }
    ptx::NamedBarrierSync(kAllConsumers, kConsumers);
  }

  __device__ static void AddCount(std::int32_t* to, int count) {
    if (count != 0) {
      atomicAdd(to, count);
    }
  }

  // Returns the scale of the key whose scores this thread may write.
  __device__ __forceinline__ float TakeKeys(IndexKeys& keys) {
    ptx::BarrierWait(shared_.full + 8 * stage_.index, stage_.parity);
    const std::uint8_t* page = shared_.ring + stage_.index * IndexerBlock::kBytes;
    LoadIndexKeys(page, token_, lane_, keys);
    const float scale =
        *reinterpret_cast<const float*>(page + IndexerBlock::Scale(token_ + lane_ % 2 * 8));
    __syncwarp();
    if (lane_ == 0) {
      ptx::BarrierArrive(shared_.empty + 8 * stage_.index);
    }
    stage_.Advance(kGroups, p_.layout.stages);
    return scale;
  }

  // Of kRows rows, whose heads lie one behind the other.
  template <int kRows>
  using Products = float[kRows * kHeads / 2];

  // Of key token_ in even lanes, token_ + 8 in odd ones.
  template <int kRows>
  __device__ __forceinline__ float Sum(const float* weights,
                                       const Products<kRows>& products) const {
    float sums[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      IndexWeights<kHeads> of_row;
      LoadIndexWeights<kHeads>(weights + row * kHeads, lane_, of_row);
      sums[row] = SumOfHeads<kHeads>(of_row, products + row * kHeads / 2, lane_);
    }
    return SumOfRows(sums[0], sums[kRows - 1], lane_);
  }
  // Writes and counts a score where the row sees the key; `row` is of the unit.
  __device__ __forceinline__ void Keep(float score, float* to, int row, int key) const {
    const int position = first_position_ + row;
    if (key <= position) {
      *to = score;
      if (isnan(score)) {
        p_.call.work[std::int64_t{first_row_ + row} * kRowWorkInts + kNanFlag] = 1;
      } else if (position >= k_) {
        atomicAdd(shared_.histograms + row * kScoreBins + ScoreBin(score), 1);
      }
    }
  }

  // Two rows at a time: every lane then has a score of its own.
  __device__ __forceinline__ void ScorePage(const Run& unit, int page) {
    IndexKeys keys;
    const float scale = TakeKeys(keys);
    const int key = page * kTokensPerBlock + token_ + lane_ % 2 * 8;
    const int place = slot_.index * p_.call.unit_rows;
    unsigned queries = ptx::SharedAddress(shared_.queries) + place * kQueryBytes;
    const float* weights = shared_.weights + place * kHeads;
    const int last = unit.last - unit.first;
    const int my_row = lane_ / 2 % 2;  // of two
    float* to = p_.call.scores.Row(unit.first + my_row) + key;
    int row = 0;
    for (; row < last; row += 2) {
      Products<2> products;
      MultiplyIndexKeys<2 * kHeads>(keys, queries, products);
      Keep(Sum<2>(weights, products) * scale, to, row + my_row, key);
      __syncwarp();
      queries += 2 * kQueryBytes;
      weights += 2 * kHeads;
      to += 2 * p_.call.scores.row_stride;
    }
    if (row == last) {
      Products<1> products;
      MultiplyIndexKeys<kHeads>(keys, queries, products);
      const float score = Sum<1>(weights, products) * scale;
      if (my_row == 0) {
        Keep(score, to, row, key);
      }
      __syncwarp();
    }
  }

  // Pages of this group two at a time, for units of kUnit rows, as long as all of them see all of a
  // page; a row at a time: while one product is summed up the next is made, and a row's weights
  // serve both pages.  Returns the first page that is left.
  __device__ __forceinline__ int ScorePagePairs(const Run& unit, int page) {
    const int end = min(unit.to, (first_position_ + 1) / kTokensPerBlock);
    const int place = slot_.index * p_.call.unit_rows;
    const unsigned queries = ptx::SharedAddress(shared_.queries) + place * kQueryBytes;
    const float* weights = shared_.weights + place * kHeads;
    const int my_row = lane_ / 2 % 2;  // of two
    constexpr int kApart = kGroups * kTokensPerBlock;
    const std::int64_t stride = p_.call.scores.row_stride;
    float* to[kUnit / 2];
    bool has_nan[kUnit / 2] = {};
    int* histograms = shared_.histograms + my_row * kScoreBins;
#pragma unroll
    for (int i = 0; i < kUnit / 2; ++i) {
      to[i] = p_.call.scores.Row(unit.first) + (2 * i + my_row) * stride + page * kTokensPerBlock +
              token_ + lane_ % 2 * 8;
    }
    for (; page + kGroups < end; page += 2 * kGroups) {
      IndexKeys keys[2];
      float scales[2];
      Products<1> products[2];
      scales[0] = TakeKeys(keys[0]);
      BeginProduct<kHeads>(keys[0], queries, products[0]);
      scales[1] = TakeKeys(keys[1]);
      float first[2];  // sums of the first of two rows
#pragma unroll
      for (int row = 0; row < kUnit; ++row) {
        IndexWeights<kHeads> of_row;
        LoadIndexWeights<kHeads>(weights + row * kHeads, lane_, of_row);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // The product behind this one.
          if (half == 0) {
            BeginProduct<kHeads>(keys[1], queries + row * kQueryBytes, products[1]);
            ptx::WgmmaWait<1>();
          } else if (row + 1 < kUnit) {
            BeginProduct<kHeads>(keys[0], queries + (row + 1) * kQueryBytes, products[0]);
            ptx::WgmmaWait<1>();
          } else {
            ptx::WgmmaWait<0>();
          }
          ptx::PinRegisters(products[half]);
          const float sum = SumOfHeads<kHeads>(of_row, products[half], lane_);
          if (row % 2 == 0) {
            first[half] = sum;
          } else {
            const float score = SumOfRows(first[half], sum, lane_) * scales[half];
            to[row / 2][half * kApart] = score;
            has_nan[row / 2] = has_nan[row / 2] || isnan(score);
            atomicAdd(histograms + row / 2 * 2 * kScoreBins + ScoreBin(score), 1);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kUnit / 2; ++i) {
        to[i] += 2 * kApart;
      }
    }
#pragma unroll
    for (int i = 0; i < kUnit / 2; ++i) {
      if (has_nan[i]) {
        p_.call.work[std::int64_t{first_row_ + 2 * i + my_row} * kRowWorkInts + kNanFlag] = 1;
      }
    }
    __syncwarp();
    return page;
  }

  const KernelParams& p_;
  const Shared& shared_;
  int thread_;
  int lane_;
  int token_;  // of the page, and token_ + 8
  int k_;
  int first_row_ = 0;       // of the unit
  int first_position_ = 0;  // of that row
  Place stage_;
  Place run_{.index = 0, .parity = 0};
  Place slot_{.index = 0, .parity = 0};
};

template <int kHeads>
__global__ __launch_bounds__(kThreads,
                             1) void IndexScoresKernel(const __grid_constant__ KernelParams p) {
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const Shared shared(memory, p.layout);
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const auto rows = static_cast<int>(p.call.rows.positions.size);
  if (thread == 0) {
    shared.InitBarriers(p.layout.stages, kConsumerWarps);
  }
  for (int row = thread; row < rows; row += kThreads) {
    shared.positions[row] = p.call.rows.positions.data[row];
    shared.sequences[row] = p.call.rows.sequences.data[row];
  }
  for (int i = thread; i < p.call.unit_rows * kScoreBins; i += kThreads) {
    shared.histograms[i] = 0;
  }
  __syncthreads();
  CountPages(shared, rows, p.call.unit_rows);
  __syncthreads();
  const Share share(shared.first_page[rows], p.call.unit_rows > p.call.rows.group);
  if (share.begin >= share.end) {
    ptx::WaitForPredecessors();  // of rows of padding alone no block has pages
    return;
  }
  if (warp < kConsumerWarps) {
    ptx::RaiseRegisters<kConsumerRegisters>();
    ptx::WaitForPredecessors();
    ptx::AllowSuccessor();
    Consumer<kHeads>(p, shared).ScoreAll();
  } else {
    ptx::LowerRegisters<kProducerRegisters>();
    if (warp == kPageWarp) {
      PageProducer(p, shared, share).CopyAll();
    } else if (warp == kPageWarp + 1 && thread % kWarpSize == 0) {
      CopyQueries(p, shared);
    }
  }
}

template <int kHeads>
void Launch(const IndexScoresParams& params, cudaStream_t stream) {
  const auto kernel = IndexScoresKernel<kHeads>;
  static PerDevice attribute;
  attribute.Once([&] {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kSharedBytesMax);
  });
  const KernelParams p{
      .call = params,
      .layout = MakeLayout(kHeads, params.unit_rows, static_cast<int>(params.rows.positions.size),
                           kStagesMax, kGroups)};
  LaunchDependent(kernel,
                  {.grid = kMultiprocessors, .threads = kThreads, .shared_bytes = p.layout.bytes},
                  stream, p);
}

}  // namespace
}  // namespace index_scores

void IndexScores(const IndexScoresParams& params, cudaStream_t stream) {
  DSA_CHECK(params.rows.positions.size <= kIndexScoreRowsMax, "IndexScores: {} rows, at most {}",
            params.rows.positions.size, kIndexScoreRowsMax);
  DSA_CHECK(params.unit_rows >= 1 && params.unit_rows <= kRowGroupMax,
            "IndexScores: {} rows a unit, at most {}", params.unit_rows, kRowGroupMax);
  if (params.unit_rows == 1 && params.rows.positions.size <= index_scores::kFewRowsMax) {
    index_scores::LaunchFew(params, stream);
    return;
  }
  switch (params.padded_heads) {
    case 16: index_scores::Launch<16>(params, stream); return;
    case 32: index_scores::Launch<32>(params, stream); return;
    case 64: index_scores::Launch<64>(params, stream); return;
    default: DSA_CHECK(false, "IndexScores: {} heads", params.padded_heads);
  }
}

}  // namespace dsa::cuda
