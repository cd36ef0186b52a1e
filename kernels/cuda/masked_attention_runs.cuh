// The plan of MaskedAttention, made on the device, and what every window starts with.
#pragma once

#include "kernels/cuda/attention_keys.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/masked_attention.h"

namespace dsa::cuda {

inline constexpr int kPlanThreads = 1024;

// One block.  Runs by a scan over the rows, then windows by one thread.
__global__ __launch_bounds__(kPlanThreads) inline void PlanRunsKernel(PagedRows rows,
                                                                      MaskedScratch scratch) {
  StartAfterPredecessors();
  __shared__ int counts[kPlanThreads];
  const int total = static_cast<int>(rows.sequences.size);
  const int chunk = (total + kPlanThreads - 1) / kPlanThreads;
  const int thread = static_cast<int>(threadIdx.x);
  const int first = min(total, thread * chunk);
  const int last = min(total, first + chunk);
  const auto starts = [&](int row) {
    return row == 0 || rows.sequences.data[row] != rows.sequences.data[row - 1];
  };
  for (int i = thread; i < scratch.counter_count; i += kPlanThreads) {
    scratch.counters[i] = 0;
  }
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
  // A thread's last run is most often that of its neighbours.
  run = counts[thread] - own - 1;
  int run_rows = 0;
  int run_keys = 0;
  const auto add = [&] {
    atomicAdd(&scratch.runs[run].rows, run_rows);
    atomicMax(&scratch.runs[run].keys, run_keys);
    run_rows = 0;
    run_keys = 0;
  };
  for (int row = first; row < last; ++row) {
    if (starts(row)) {
      if (run_rows > 0) {
        add();
      }
      ++run;
    }
    ++run_rows;
    run_keys = max(run_keys, rows.positions.data[row] + 1);
  }
  const unsigned same = __match_any_sync(kAllLanes, run);
  run_rows = static_cast<int>(__reduce_add_sync(same, static_cast<unsigned>(run_rows)));
  run_keys = __reduce_max_sync(same, run_keys);
  if (run_rows > 0 && thread % kWarpSize == __ffs(static_cast<int>(same)) - 1) {
    add();
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
