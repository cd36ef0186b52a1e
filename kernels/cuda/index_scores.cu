// IndexScores: one block a multiprocessor works through pages, 64 keys with their scales, of which
// it takes an equal share of the first 3/4 of all pages of all rows, in order, and then pieces of
// the rest from a counter, since multiprocessors differ in bandwidth.  Few pages are shared out
// equally.
//
//   3 warpgroups   page i of the block is group i % 3's.  A = keys, converted to half in registers;
//                  B = queries, half, in shared memory.  A thread has kHeads / 4 heads of 2 keys:
//                  ReLU, weight, sum, two shuffles
//   warp 12        copies pages into a ring, 8,448 contiguous bytes each, scales included; tells
//   the
//                  others by a second ring which pages of which rows come next
//   warp 13        copies the queries of the rows told, one unit of rows ahead
//
// A unit is up to `unit_rows` rows of one sequence at consecutive positions: their keys are read
// and converted once.  The lanes of a quad have 16 adjacent bytes of each half of a key; those of
// odd g read the upper half first, so that a quarter warp reads all 32 banks.
//
// Exact products and float32 sums; a score's bits depend on its key and query alone.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/index_scores.h"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/ptx/wgmma_half.cuh"
#include "kernels/cuda/score_order.cuh"

#include <algorithm>

namespace dsa::cuda {
namespace {

constexpr int kGroups = 3;
constexpr int kConsumers = kGroups * 128;
constexpr int kConsumerWarps = kConsumers / kWarpSize;
constexpr int kPageWarp = kConsumerWarps;
constexpr int kThreads = kConsumers + 2 * kWarpSize;
constexpr int kStagesMax = 24;
constexpr int kRuns = 8;
constexpr int kQuerySlots = 2;
constexpr int kRowsMax = static_cast<int>(kIndexScoreRowsMax);
constexpr int kSharedBytesMax = 227 * 1024;
constexpr int kAllConsumers = 1;  // a named barrier

// Where things lie in shared memory; the ring of pages first.
struct Layout {
  int stages;
  int queries;     // kQuerySlots x unit_rows
  int weights;     // kQuerySlots x unit_rows
  int histograms;  // unit_rows
  int first_page;  // of each row, counted over all rows
  int positions;
  int sequences;
  int runs;
  int barriers;
  int bytes;
};

Layout MakeLayout(int padded_heads, int unit_rows) {
  const int query_bytes = kQuerySlots * unit_rows * PreparedQueryBytes(padded_heads);
  const int weight_bytes = kQuerySlots * unit_rows * padded_heads * 4;
  const int fixed = query_bytes + weight_bytes + unit_rows * kScoreBins * 4 + (kRowsMax + 4) * 4 +
                    2 * kRowsMax * 4 + kRuns * 16 + (2 * kRuns + 2 * kQuerySlots) * 8;
  const int fitting = (kSharedBytesMax - fixed) / (IndexerBlock::kBytes + 2 * 8);
  // A stage is always the same group's.  Otherwise a group could wait for a stage's next but one
  // filling (copies do not end in the order they began in), which a barrier's parity cannot tell
  // from the last.
  Layout layout{};
  layout.stages = std::min(fitting, kStagesMax) / kGroups * kGroups;
  layout.queries = layout.stages * IndexerBlock::kBytes;
  layout.weights = layout.queries + query_bytes;
  layout.histograms = layout.weights + weight_bytes;
  layout.first_page = layout.histograms + unit_rows * kScoreBins * 4;
  layout.positions = layout.first_page + (kRowsMax + 4) * 4;
  layout.sequences = layout.positions + kRowsMax * 4;
  layout.runs = layout.sequences + kRowsMax * 4;
  layout.barriers = layout.runs + kRuns * 16;
  layout.bytes = layout.barriers + (2 * layout.stages + 2 * kRuns + 2 * kQuerySlots) * 8;
  return layout;
}

struct KernelParams {
  IndexScoresParams call;
  Layout layout;
};

// Pages [from, to) of the unit of rows first .. last; last < 0: no more.
struct Run {
  int last;
  int from;
  int to;
  int first;
};

// A block's shared memory.
struct Shared {
  std::uint8_t* ring;
  std::uint8_t* queries;
  float* weights;
  int* histograms;
  int* first_page;
  int* positions;
  int* sequences;
  Run* runs;
  unsigned full;  // barriers, 8 bytes each: of a stage
  unsigned empty;
  unsigned run_full;
  unsigned run_empty;
  unsigned query_full;
  unsigned query_empty;

  __device__ Shared(std::uint8_t* base, const Layout& layout)
      : ring(base),
        queries(base + layout.queries),
        weights(reinterpret_cast<float*>(base + layout.weights)),
        histograms(reinterpret_cast<int*>(base + layout.histograms)),
        first_page(reinterpret_cast<int*>(base + layout.first_page)),
        positions(reinterpret_cast<int*>(base + layout.positions)),
        sequences(reinterpret_cast<int*>(base + layout.sequences)),
        runs(reinterpret_cast<Run*>(base + layout.runs)),
        full(ptx::SharedAddress(base + layout.barriers)),
        empty(full + 8 * layout.stages),
        run_full(empty + 8 * layout.stages),
        run_empty(run_full + 8 * kRuns),
        query_full(run_empty + 8 * kRuns),
        query_empty(query_full + 8 * kQuerySlots) {}

  __device__ void InitBarriers(int stages) const {
    for (int stage = 0; stage < stages; ++stage) {
      ptx::BarrierInit(full + 8 * stage, 1);
      ptx::BarrierInit(empty + 8 * stage, 4);
    }
    for (int run = 0; run < kRuns; ++run) {
      ptx::BarrierInit(run_full + 8 * run, 1);
      ptx::BarrierInit(run_empty + 8 * run, kConsumerWarps + 1);
    }
    for (int slot = 0; slot < kQuerySlots; ++slot) {
      ptx::BarrierInit(query_full + 8 * slot, 1);
      ptx::BarrierInit(query_empty + 8 * slot, 1);
    }
    ptx::BarrierInitFence();
  }
  // Whether row r is of the sequence of the row before and stands right behind it.
  __device__ bool Continues(int row) const {
    return sequences[row] == sequences[row - 1] && positions[row] == positions[row - 1] + 1;
  }
  __device__ int FirstOfUnit(int last, int unit_rows) const {
    int first = last;
    while (first % unit_rows != 0 && Continues(first)) {
      --first;
    }
    return first;
  }
};

// A place in a ring, and the parity of the phase that its barrier is in.
struct Place {
  int index;
  unsigned parity;
  __device__ void Advance(int by, int size) {
    index += by;
    if (index >= size) {
      index -= size;
      parity ^= 1U;
    }
  }
};

// One warp: the pages of a unit count at its last row.
__device__ void CountPages(const Shared& shared, int rows, int unit_rows, int lane) {
  int before = 0;
  for (int begin = 0; begin < rows; begin += kWarpSize) {
    const int row = begin + lane;
    const bool is_last =
        row < rows && (row + 1 == rows || (row + 1) % unit_rows == 0 || !shared.Continues(row + 1));
    int sum = is_last ? (shared.positions[row] + kTokensPerBlock) / kTokensPerBlock : 0;
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
      const int lower = __shfl_up_sync(kAllLanes, sum, offset);
      sum += lane >= offset ? lower : 0;
    }
    if (row < rows) {
      shared.first_page[row + 1] = before + sum;
    }
    before += __shfl_sync(kAllLanes, sum, kWarpSize - 1);
  }
  if (lane == 0) {
    shared.first_page[0] = 0;
  }
}

// What a block takes of all pages.
struct Share {
  int begin;
  int end;
  bool has_pieces;
  int shared_pages;  // the others are handed out in pieces
  int piece_pages;
  int all_pages;
  __device__ explicit Share(int pages) : all_pages(pages) {
    const auto blocks = static_cast<int>(gridDim.x);
    has_pieces = pages >= blocks * 32;
    piece_pages = pages >= blocks * 256 ? 16 : 8;
    shared_pages = has_pieces ? pages / 8 * 6 : pages;
    begin = static_cast<int>(std::int64_t{shared_pages} * blockIdx.x / blocks);
    end = static_cast<int>(std::int64_t{shared_pages} * (blockIdx.x + 1) / blocks);
  }
};

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
    Tell({.last = -1, .from = 0, .to = 0, .first = 0});
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
  __device__ void Tell(const Run& run) {
    if (lane_ == 0) {
      ptx::BarrierWait(shared_.run_empty + 8 * run_.index, run_.parity);
      shared_.runs[run_.index] = run;
      ptx::BarrierArrive(shared_.run_full + 8 * run_.index);
    }
    run_.Advance(1, kRuns);
  }
  __device__ void CopyPage(std::int32_t id) {
    // Not before the ring is full for the first time: the wait would delay its pages.
    if (share_.has_pieces && !asked_ && (waited_ || copied_ == p_.layout.stages)) {
      AskForPiece();
    }
    if (lane_ == 0) {
      const unsigned full = shared_.full + 8 * stage_.index;
      ptx::BarrierWait(shared_.empty + 8 * stage_.index, stage_.parity);
      ptx::BarrierExpect(full, IndexerBlock::kBytes);
      ptx::CopyBulk(ptx::SharedAddress(shared_.ring + stage_.index * IndexerBlock::kBytes),
                    p_.call.cache.data + std::int64_t{id} * IndexerBlock::kBytes,
                    IndexerBlock::kBytes, full);
    }
    stage_.Advance(1, p_.layout.stages);
    ++copied_;
  }
  __device__ void CopyPages(int begin, int end) {
    const auto rows = static_cast<int>(p_.call.rows.positions.size);
    int row = 0;  // the last with first_page[row] <= begin
    for (int step = kRowsMax / 2; step > 0; step /= 2) {
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
      Tell({.last = row,
            .from = page - first_page,
            .to = row_end - first_page,
            .first = shared_.FirstOfUnit(row, p_.call.unit_rows)});
      const std::int32_t* table = p_.call.rows.block_tables.Row(shared_.sequences[row]);
      for (; page < row_end; page += kWarpSize) {
        const std::int32_t ids = page + lane_ < row_end ? table[page - first_page + lane_] : 0;
        const int count = min(kWarpSize, row_end - page);
        for (int i = 0; i < count; ++i) {
          CopyPage(__shfl_sync(kAllLanes, ids, i));
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

// Not fmaxf, which would hide a NaN.
__device__ __forceinline__ float Relu(float value) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
  return result;
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
        token_(thread_ / kWarpSize % 4 * 16 + lane_ / 4),
        stage_({.index = thread_ / 128, .parity = 0}) {}

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
      }
      int page = run.from + skip;
      for (; page < run.to; page += kGroups) {
        ScorePage(unit, page);
      }
      skip = page - run.to;
    }
  }

 private:
  static constexpr int kQueryBytes = PreparedQueryBytes(kHeads);
  static constexpr int kSteps = 8;  // of 16 columns

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
  // Hands the histograms over and clears them.
  __device__ void LeaveUnit(const Run& unit) {
    ptx::NamedBarrierSync(kAllConsumers, kConsumers);  // all scores are counted
    if (thread_ == 0) {
      ptx::BarrierArrive(shared_.query_empty + 8 * slot_.index);
    }
    slot_.Advance(1, kQuerySlots);
    for (int row = unit.first; row <= unit.last; ++row) {
      int* histogram = shared_.histograms + (row - unit.first) * kScoreBins;
      std::int32_t* to = p_.call.work + std::int64_t{row} * kRowWorkInts;
      if (shared_.positions[row] < p_.call.k) {
        continue;  // nothing was counted
      }
      for (int bin = thread_; bin < kScoreBins; bin += kConsumers) {
        const int count = histogram[bin];
        if (count != 0) {
          atomicAdd(to + bin, count);
          histogram[bin] = 0;
        }
      }
    }
    ptx::NamedBarrierSync(kAllConsumers, kConsumers);
  }

  // Keys token_ and token_ + 8 as halves: step s has 2 s and 2 s + 1.  Returns the scale of the key
  // whose score this thread may write.
  __device__ __forceinline__ float TakeKeys(unsigned (&halves)[2][2 * kSteps]) {
    ptx::BarrierWait(shared_.full + 8 * stage_.index, stage_.parity);
    const std::uint8_t* page = shared_.ring + stage_.index * IndexerBlock::kBytes;
    const std::uint8_t* keys = page + IndexerBlock::Values(token_) + lane_ % 4 * 16;
    const bool is_odd = lane_ / 4 % 2 != 0;
    uint4 raw[2][2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const std::uint8_t* key = keys + row * 8 * kIndexerValues;
      raw[row][0] = *reinterpret_cast<const uint4*>(key + (is_odd ? 64 : 0));
      raw[row][1] = *reinterpret_cast<const uint4*>(key + (is_odd ? 0 : 64));
    }
    const float scale =
        *reinterpret_cast<const float*>(page + IndexerBlock::Scale(token_ + lane_ % 2 * 8));
    __syncwarp();
    if (lane_ == 0) {
      ptx::BarrierArrive(shared_.empty + 8 * stage_.index);
    }
    stage_.Advance(kGroups, p_.layout.stages);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 even = raw[row][half];
        const uint4 odd = raw[row][1 - half];
        unsigned* to = halves[row] + half * kSteps;
        ToHalves(is_odd ? odd.x : even.x, to[0], to[1]);
        ToHalves(is_odd ? odd.y : even.y, to[2], to[3]);
        ToHalves(is_odd ? odd.z : even.z, to[4], to[5]);
        ToHalves(is_odd ? odd.w : even.w, to[6], to[7]);
      }
    }
    return scale;
  }

  // Of kRows rows, whose heads lie one behind the other.
  template <int kRows>
  using Products = float[kRows * kHeads / 2];

  template <int kRows>
  __device__ __forceinline__ static void Multiply(const unsigned (&halves)[2][2 * kSteps],
                                                  const std::uint8_t* queries,
                                                  Products<kRows>& products) {
    const std::uint64_t tile =
        ptx::PlainTile(ptx::SharedAddress(queries), kPreparedPieceBytes, kPreparedHeadGroupBytes);
    ptx::WgmmaFence();
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      ptx::WgmmaHalf<kRows * kHeads>::Run(products, halves[0][2 * s], halves[1][2 * s],
                                          halves[0][2 * s + 1], halves[1][2 * s + 1],
                                          tile + s * (kPreparedStepBytes / 16), s > 0);
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(products);
  }
  // The score, before its scale, of key token_ (lanes of even quarter) or token_ + 8 (odd); of row
  // kRow of those multiplied.
  template <int kRow, int kRows>
  __device__ __forceinline__ float Sum(const float* weights,
                                       const Products<kRows>& products) const {
    constexpr int kPairs = kHeads / 8;  // of a thread's heads 8 i + 2 q and the next
    constexpr int kFirst = kRow * kHeads / 2;
    const auto* pairs = reinterpret_cast<const float2*>(weights + kRow * kHeads) + lane_ % 4;
    float sums[2] = {};
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const float2 weight = pairs[4 * i];
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        sums[row] = fmaf(weight.x, Relu(products[kFirst + 4 * i + 2 * row]), sums[row]);
        sums[row] = fmaf(weight.y, Relu(products[kFirst + 4 * i + 2 * row + 1]), sums[row]);
      }
    }
    const bool is_odd = lane_ % 2 != 0;
    float sum = is_odd ? sums[1] : sums[0];
    sum += __shfl_xor_sync(kAllLanes, is_odd ? sums[0] : sums[1], 1);
    return sum + __shfl_xor_sync(kAllLanes, sum, 2);
  }
  // Writes and counts it where the row sees the key; `place` is the row's in its unit.
  __device__ __forceinline__ void Keep(float score, int row, int place, int key) const {
    const int position = shared_.positions[row];
    if (lane_ % 4 < 2 && key <= position) {
      p_.call.scores.Row(row)[key] = score;
      if (isnan(score)) {
        p_.call.work[std::int64_t{row} * kRowWorkInts + kNanFlag] = 1;
      } else if (position >= p_.call.k) {
        atomicAdd(shared_.histograms + place * kScoreBins + ScoreBin(ScoreKey(score)), 1);
      }
    }
    __syncwarp();
  }

  // Two rows at a time: a product of 64 columns keeps the tensor cores half as busy as one of 128.
  __device__ __forceinline__ void ScorePage(const Run& unit, int page) {
    unsigned halves[2][2 * kSteps];
    const float scale = TakeKeys(halves);
    const int key = page * kTokensPerBlock + token_ + lane_ % 2 * 8;
    const int place = slot_.index * p_.call.unit_rows;
    const std::uint8_t* queries = shared_.queries + place * kQueryBytes;
    const float* weights = shared_.weights + place * kHeads;
    int row = unit.first;
    for (; row < unit.last; row += 2, queries += 2 * kQueryBytes, weights += 2 * kHeads) {
      Products<2> products;
      Multiply<2>(halves, queries, products);
      Keep(Sum<0, 2>(weights, products) * scale, row, row - unit.first, key);
      Keep(Sum<1, 2>(weights, products) * scale, row + 1, row + 1 - unit.first, key);
    }
    if (row == unit.last) {
      Products<1> products;
      Multiply<1>(halves, queries, products);
      Keep(Sum<0, 1>(weights, products) * scale, row, row - unit.first, key);
    }
  }

  const KernelParams& p_;
  const Shared& shared_;
  int thread_;
  int lane_;
  int token_;  // of the page, and token_ + 8
  Place stage_;
  Place run_{.index = 0, .parity = 0};
  Place slot_{.index = 0, .parity = 0};
};

template <int kHeads>
__global__ __launch_bounds__(kThreads,
                             1) void IndexScoresKernel(const __grid_constant__ KernelParams p) {
  extern __shared__ __align__(128) std::uint8_t memory[];
  const Shared shared(memory, p.layout);
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const auto rows = static_cast<int>(p.call.rows.positions.size);
  if (thread == 0) {
    shared.InitBarriers(p.layout.stages);
  }
  for (int row = thread; row < rows; row += kThreads) {
    shared.positions[row] = p.call.rows.positions.data[row];
    shared.sequences[row] = p.call.rows.sequences.data[row];
  }
  for (int i = thread; i < p.call.unit_rows * kScoreBins; i += kThreads) {
    shared.histograms[i] = 0;
  }
  __syncthreads();
  if (warp == 0) {
    CountPages(shared, rows, p.call.unit_rows, thread % kWarpSize);
  }
  __syncthreads();
  const Share share(shared.first_page[rows]);
  if (share.begin >= share.end) {
    return;
  }
  if (warp < kConsumerWarps) {
    ptx::WaitForPredecessors();
    ptx::AllowSuccessor();
    Consumer<kHeads>(p, shared).ScoreAll();
  } else if (warp == kPageWarp) {
    PageProducer(p, shared, share).CopyAll();
  } else if (thread % kWarpSize == 0) {
    CopyQueries(p, shared);
  }
}

template <int kHeads>
void Launch(const IndexScoresParams& params, cudaStream_t stream) {
  const auto kernel = IndexScoresKernel<kHeads>;
  static const cudaError_t attribute =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytesMax);
  DSA_CUDA_CHECK(attribute);
  const KernelParams p{.call = params, .layout = MakeLayout(kHeads, params.unit_rows)};
  LaunchDependent(kernel,
                  {.grid = kMultiprocessors, .threads = kThreads, .shared_bytes = p.layout.bytes},
                  stream, p);
}

}  // namespace

void IndexScores(const IndexScoresParams& params, cudaStream_t stream) {
  DSA_CHECK(params.rows.positions.size <= kIndexScoreRowsMax, "IndexScores: {} rows, at most {}",
            params.rows.positions.size, kIndexScoreRowsMax);
  DSA_CHECK(params.unit_rows >= 1 && params.unit_rows <= kRowGroupMax,
            "IndexScores: {} rows a unit, at most {}", params.unit_rows, kRowGroupMax);
  switch (params.padded_heads) {
    case 16: Launch<16>(params, stream); return;
    case 32: Launch<32>(params, stream); return;
    case 64: Launch<64>(params, stream); return;
    default: DSA_CHECK(false, "IndexScores: {} heads", params.padded_heads);
  }
}

}  // namespace dsa::cuda
