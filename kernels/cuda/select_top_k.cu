// SelectTopK: one block of 1024 threads per row; an exact radix selection, then a compaction in
// order of position.
//
//   1. The K-th largest key, 8 bits a pass from the top: histogram of the keys that agree with the
//      prefix found so far, then the digit at which the count from above reaches what is missing.
//   2. One sweep over the positions in order: keys above the threshold are taken, keys equal to it
//      while any are still missing.  A block-wide prefix sum gives each its place, so the output
//      is ascending and ties go to the lower position.
//
// Keys are the scores' bits made monotone as unsigned integers, -0 mapped to +0.  Scores are read
// five times, from L2 after the first; 4 bytes a key.
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"

#include <cub/block/block_scan.cuh>

namespace dsa {
namespace {

constexpr int kThreads = 1024;
constexpr int kDigits = 256;
using Scan = cub::BlockScan<int, kThreads>;

// Larger score, larger key; equal scores, equal keys.
__device__ unsigned KeyOf(float score) {
  const unsigned bits = score == 0.0F ? 0U : __float_as_uint(score);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

struct Threshold {
  unsigned key;  // the K-th largest
  int ties;      // how many keys equal to it are selected
};

// Every thread calls it and gets the same result.  `k` < visible.
__device__ Threshold FindThreshold(const float* scores, int visible, int k) {
  __shared__ int histogram[kDigits];
  __shared__ unsigned prefix;
  __shared__ int missing;
  if (threadIdx.x == 0) {
    prefix = 0;
    missing = k;
  }
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < kDigits) {
      histogram[threadIdx.x] = 0;
    }
    __syncthreads();
    const unsigned high_mask = shift == 24 ? 0U : ~0U << (shift + 8);
    for (int i = static_cast<int>(threadIdx.x); i < visible; i += kThreads) {
      const unsigned key = KeyOf(scores[i]);
      if ((key & high_mask) == prefix) {
        atomicAdd(&histogram[(key >> shift) & (kDigits - 1)], 1);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = kDigits - 1;
      while (histogram[digit] < missing) {
        missing -= histogram[digit];
        --digit;
      }
      prefix |= static_cast<unsigned>(digit) << shift;
    }
    __syncthreads();
  }
  return {.key = prefix, .ties = missing};
}

__global__ __launch_bounds__(kThreads) void SelectTopKKernel(
    const __grid_constant__ SelectTopKParams p) {
  __shared__ typename Scan::TempStorage scan_storage;
  const std::int64_t row = blockIdx.x;
  const int k = static_cast<int>(p.selected.cols);
  const int visible = p.positions.data[row] + 1;
  const int count = min(k, visible);
  const float* scores = p.scores.Row(row);
  std::int32_t* selected = p.selected.Row(row);

  bool has_nan = false;
  for (int i = static_cast<int>(threadIdx.x); i < visible; i += kThreads) {
    has_nan = has_nan || isnan(scores[i]);
  }
  has_nan = __syncthreads_or(static_cast<int>(has_nan)) != 0;
  if (threadIdx.x == 0) {
    p.counts.data[row] = count;
    if (has_nan) {
      p.faults.data[row] |= kRowFaultIndexerNan;
    }
  }
  if (visible <= k || has_nan) {
    for (int i = static_cast<int>(threadIdx.x); i < k; i += kThreads) {
      selected[i] = i < count ? i : -1;
    }
    return;
  }

  const Threshold threshold = FindThreshold(scores, visible, k);
  int taken = 0;  // selected so far
  int ties = 0;   // of them, equal to the threshold
  for (int base = 0; base < visible && taken < k; base += kThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const unsigned key = i < visible ? KeyOf(scores[i]) : 0U;
    const bool is_tie = i < visible && key == threshold.key;
    int tie_rank = 0;
    int tie_total = 0;
    Scan(scan_storage).ExclusiveSum(static_cast<int>(is_tie), tie_rank, tie_total);
    __syncthreads();  // the scan's storage is used again
    const bool take =
        (i < visible && key > threshold.key) || (is_tie && ties + tie_rank < threshold.ties);
    int rank = 0;
    int total = 0;
    Scan(scan_storage).ExclusiveSum(static_cast<int>(take), rank, total);
    __syncthreads();
    if (take) {
      selected[taken + rank] = i;
    }
    taken += total;
    ties += tie_total;
  }
}

}  // namespace

void CudaBackend::SelectTopK(const SelectTopKParams& params) {
  const SelectTopKExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  SelectTopKKernel<<<static_cast<unsigned>(extents.tokens), kThreads, 0, state_->stream>>>(params);
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
