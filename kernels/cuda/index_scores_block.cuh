// What the kernels of IndexScores share: how a block's memory is laid out, and which pages it
// takes.
#pragma once

#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/index_products.cuh"
#include "kernels/cuda/index_scores.h"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/ptx/shared_memory.cuh"
#include "kernels/cuda/score_order.cuh"
#include "kernels/cuda/warp_sums.cuh"

#include <algorithm>

namespace dsa::cuda::index_scores {

inline constexpr int kRuns = 8;
inline constexpr int kQuerySlots = 2;
inline constexpr int kSharedBytesMax = 227 * 1024;
inline constexpr int kAllConsumers = 1;  // a named barrier

// Where things lie in shared memory; the queries first.
struct Layout {
  int stages;
  int ring;
  int weights;     // kQuerySlots x unit_rows
  int histograms;  // unit_rows
  int first_page;  // of each row, counted over all rows
  int positions;
  int sequences;
  int runs;
  int barriers;
  int bytes;
};

// A ring of at most `stages_max` pages, for `groups` warpgroups, in at most `bytes_max`.
inline Layout MakeLayout(int padded_heads, int unit_rows, int rows, int stages_max, int groups,
                         int bytes_max = kSharedBytesMax) {
  const int query_bytes = kQuerySlots * unit_rows * PreparedQueryBytes(padded_heads);
  const int weight_bytes = kQuerySlots * unit_rows * padded_heads * 4;
  const int row_bytes = (rows + 3) / 4 * 16;  // 4 a row
  const int fixed = query_bytes + weight_bytes + unit_rows * kScoreBins * 4 + 16 + 3 * row_bytes +
                    kRuns * 16 + (2 * kRuns + 2 * kQuerySlots) * 8;
  const int fitting = (bytes_max - fixed) / (IndexerBlock::kBytes + 2 * 8);
  // A stage is always the same group's.  Otherwise a group could wait for a stage's next but one
  // filling (copies do not end in the order they began in), which a barrier's parity cannot tell
  // from the last.
  Layout layout{};
  layout.stages = std::min(fitting, stages_max) / groups * groups;
  layout.ring = query_bytes;
  layout.weights = layout.ring + layout.stages * IndexerBlock::kBytes;
  layout.histograms = layout.weights + weight_bytes;
  layout.first_page = layout.histograms + unit_rows * kScoreBins * 4;
  layout.positions = layout.first_page + row_bytes + 16;
  layout.sequences = layout.positions + row_bytes;
  layout.runs = layout.sequences + row_bytes;
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
      : ring(base + layout.ring),
        queries(base),
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

  __device__ void InitBarriers(int stages, int consumer_warps) const {
    for (int stage = 0; stage < stages; ++stage) {
      ptx::BarrierInit(full + 8 * stage, 1);
      ptx::BarrierInit(empty + 8 * stage, 4);
    }
    for (int run = 0; run < kRuns; ++run) {
      ptx::BarrierInit(run_full + 8 * run, 1);
      ptx::BarrierInit(run_empty + 8 * run, consumer_warps + 1);
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

// By the warp of pages: which come next, for consumers and the warp of queries.
__device__ inline void Tell(const Shared& shared, Place& at, const Run& run, int lane) {
  if (lane == 0) {
    ptx::BarrierWait(shared.run_empty + 8 * at.index, at.parity);
    shared.runs[at.index] = run;
    ptx::BarrierArrive(shared.run_full + 8 * at.index);
  }
  at.Advance(1, kRuns);
}
// By a thread, where the stage is empty; `full` is its barrier.
__device__ inline void CopyPage(const KernelParams& p, const Shared& shared, std::int32_t id,
                                int stage, unsigned full) {
  ptx::BarrierExpect(full, IndexerBlock::kBytes);
  ptx::CopyBulk(ptx::SharedAddress(shared.ring + stage * IndexerBlock::kBytes),
                p.call.cache.data + std::int64_t{id} * IndexerBlock::kBytes, IndexerBlock::kBytes,
                full);
}

// What a block takes of all pages.
struct Share {
  int begin;
  int end;
  bool has_pieces;
  int shared_pages;  // the others are handed out in pieces
  int piece_pages;
  int all_pages;
  __device__ Share(int pages, bool is_prompt) : all_pages(pages) {
    constexpr int blocks = kMultiprocessors;  // of the grid
    // Multiprocessors are equally fast at the products of a prompt, and a piece would be another
    // unit's.
    has_pieces = pages >= blocks * 32 && !is_prompt;
    piece_pages = pages >= blocks * 256 ? 16 : 8;
    shared_pages = has_pieces ? pages / 8 * 6 : pages;
    const auto begin_of = [&](int block) {
      return shared_pages / blocks * block + shared_pages % blocks * block / blocks;
    };
    begin = begin_of(static_cast<int>(blockIdx.x));
    end = begin_of(static_cast<int>(blockIdx.x) + 1);
  }
};

// IndexScores of few rows, each a unit.
inline constexpr int kFewRowsMax = 16;
void LaunchFew(const IndexScoresParams& params, cudaStream_t stream);

}  // namespace dsa::cuda::index_scores
