// The plan of MaskedAttention, made on the device, and what every window starts with.
#pragma once

#include "kernels/cuda/attention_keys.cuh"
#include "kernels/cuda/masked_attention.h"

namespace dsa::cuda {

inline constexpr int kPlanThreads = 1024;

// One block.  Runs by a scan over the rows, then windows by one thread.
__global__ __launch_bounds__(kPlanThreads) inline void PlanRunsKernel(PagedRows rows,
                                                                      MaskedScratch scratch) {
  __shared__ int counts[kPlanThreads];
  const int total = static_cast<int>(rows.sequences.size);
  const int chunk = (total + kPlanThreads - 1) / kPlanThreads;
  const int thread = static_cast<int>(threadIdx.x);
  const int first = min(total, thread * chunk);
  const int last = min(total, first + chunk);
  const auto starts = [&](int row) {
    return row == 0 || rows.sequences.data[row] != rows.sequences.data[row - 1];
  };
  int own = 0;
  for (int row = first; row < last; ++row) {
    own += starts(row) ? 1 : 0;
  }
  counts[thread] = own;
  __syncthreads();
  for (int offset = 1; offset < kPlanThreads; offset *= 2) {
    const int lower = thread >= offset ? counts[thread - offset] : 0;
    __syncthreads();
    counts[thread] += lower;
    __syncthreads();
  }
  const int runs = counts[kPlanThreads - 1];
  int run = counts[thread] - own - 1;  // of the row before the thread's first
  for (int row = first; row < last; ++row) {
    if (starts(row)) {
      ++run;
      scratch.runs[run] = {.first_row = row, .rows = 0, .keys = 0, .first_key = 0, .first_tile = 0};
    }
  }
  __syncthreads();
  run = counts[thread] - own - 1;
  for (int row = first; row < last; ++row) {
    run += starts(row) ? 1 : 0;
    atomicAdd(&scratch.runs[run].rows, 1);
    atomicMax(&scratch.runs[run].keys, rows.positions.data[row] + 1);
  }
  __syncthreads();
  if (thread != 0) {
    return;
  }
  int windows = 0;
  AttentionWindow window = {};
  for (int i = 0; i < runs; ++i) {
    AttentionRun& current = scratch.runs[i];
    const int keys =
        (current.keys + scratch.keys_of_tile - 1) / scratch.keys_of_tile * scratch.keys_of_tile;
    if (keys > scratch.keys_max) {
      __trap();  // a row sees more keys than scratch was reserved for
    }
    if (window.keys + keys > scratch.keys_max) {
      scratch.windows[windows++] = window;
      window = {.first_run = i, .runs = 0, .keys = 0, .tiles = 0};
    }
    current.first_key = window.keys;
    current.first_tile = window.tiles;
    window.runs += 1;
    window.keys += keys;
    window.tiles +=
        static_cast<int>((current.rows + scratch.rows_of_tile - 1) / scratch.rows_of_tile);
  }
  scratch.windows[windows++] = window;
  *scratch.window_count = windows;
}

// Latents and RoPE keys of the window in dense rows; keys that nobody sees are 0.  A warp per key.
template <typename T, KvFormat kFormat>
__device__ void GatherLatents(const MaskedAttentionParams& p, const MaskedScratch& scratch,
                              const AttentionWindow& window) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  for (int key = static_cast<int>(blockIdx.x) * warps + static_cast<int>(threadIdx.x) / kWarpSize;
       key < window.keys; key += static_cast<int>(gridDim.x) * warps) {
    const AttentionRun& run = RunOfKey(scratch, window, key);
    const int position = key - run.first_key;
    const bool exists = position < run.keys;
    const RowKeys keys = {.table = p.rows.block_tables.Row(p.rows.sequences.data[run.first_row]),
                          .slots = nullptr,
                          .count = run.keys};
    const std::int64_t slot = exists ? keys.Slot(position) : 0;
    T* latents = static_cast<T*>(scratch.latents) + std::int64_t{key} * kLatentValues;
    T* ropes = static_cast<T*>(scratch.ropes) + std::int64_t{key} * kLatentRopeValues;
    for (int i = lane; i < kRecordValues; i += kWarpSize) {
      const T value = FromFloat<T>(exists ? LatentValue<kFormat>(p.cache.data, slot, i) : 0.0F);
      (i < kLatentValues ? latents[i] : ropes[i - kLatentValues]) = value;
    }
  }
}

}  // namespace dsa::cuda
