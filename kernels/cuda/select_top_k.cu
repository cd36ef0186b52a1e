// SelectTopK: one block of 1024 threads per row; an exact radix selection, then a compaction in
// order of position.
//
//   1. The K-th largest key, 11, 11 and 10 bits from the top: a histogram of the keys that agree
//      with the prefix found so far, then the digit at which the count from above reaches what is
//      missing.
//   2. One sweep over the positions in order: keys above the threshold are taken, keys equal to it
//      while any are still missing.  Counts of the warps before give each its place, so the output
//      is in order of position and ties go to the lower one.
//
// Keys are the scores' bits made monotone as unsigned integers, -0 mapped to +0.  Scores are read
// four times, from L2 after the first; 4 bytes a key.  A row is one block's: with few rows the
// bandwidth of few multiprocessors is the bound.
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/row_selection.cuh"
#include "kernels/cuda/score_order.cuh"
#include "kernels/cuda/warp_sums.cuh"
#include "kernels/kv_layout.h"
#include "kernels/ops/select_top_k.h"

namespace dsa {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kWidth = 4;  // scores of a load
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == 2 * kThreads, "a thread has two digits");

struct Shared {
  int histogram[kDigits];
  unsigned warp_sums[kWarps];
  unsigned next_warp_sums[kWarps];
  unsigned prefix;  // of the K-th largest key, as far as it is known
  int missing;      // keys still to be selected of those with this prefix
};

// Four scores from position i on, beyond the last visible one the NaN whose key is 0: it is counted
// below every score, where the K-th largest is not looked for.
__device__ cuda::Pack<float, kWidth> LoadScores(const float* scores, int i, int visible) {
  if (i + kWidth <= visible) {
    return cuda::LoadPack<kWidth>(scores + i);
  }
  cuda::Pack<float, kWidth> pack;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    pack.values[j] = i + j < visible ? scores[i + j] : __uint_as_float(0xFFFFFFFFU);
  }
  return pack;
}

// Counts the digits at `shift` of the keys that begin with the prefix, whose digits lie above
// `high_mask`'s zeros.  Returns whether the thread met a NaN.
template <int kPacks>
__device__ bool CountDigits(Shared& shared, const float* scores, int visible, int shift,
                            unsigned high_mask) {
  const unsigned prefix = shared.prefix;
  bool has_nan = false;
  const auto count = [&](const cuda::Pack<float, kWidth>& pack, int i) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const unsigned key = cuda::ScoreKey(pack.values[j]);
      has_nan = has_nan || (isnan(pack.values[j]) && i + j < visible);
      if ((key & high_mask) == prefix) {
        atomicAdd(&shared.histogram[(key >> shift) & (kDigits - 1)], 1);
      }
    }
  };
  constexpr int kStep = kThreads * kWidth;
  for (int i = static_cast<int>(threadIdx.x) * kWidth; i < visible; i += kPacks * kStep) {
    cuda::Pack<float, kWidth> packs[kPacks];
#pragma unroll
    for (int load = 0; load < kPacks; ++load) {
      packs[load] = LoadScores(scores, i + load * kStep, visible);
    }
#pragma unroll
    for (int load = 0; load < kPacks; ++load) {
      count(packs[load], i + load * kStep);
    }
  }
  return has_nan;
}

// Appends the digit at `shift` to the prefix and clears the histogram.  A barrier before and after.
__device__ void AppendDigit(Shared& shared, int shift) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  // From the largest digit down.
  const int upper = kDigits - 1 - 2 * static_cast<int>(threadIdx.x);
  const int upper_count = shared.histogram[upper];
  const int count = upper_count + shared.histogram[upper - 1];
  const int missing = shared.missing;
  shared.histogram[upper] = 0;
  shared.histogram[upper - 1] = 0;
  const auto inclusive = cuda::InclusiveWarpSum(static_cast<unsigned>(count), lane);
  const unsigned warp_count = __shfl_sync(cuda::kAllLanes, inclusive, cuda::kWarpSize - 1);
  const int above =
      static_cast<int>(cuda::SumOverWarps<kWarps>(warp_count, shared.warp_sums).before +
                       inclusive) -
      count;
  if (above < missing && missing <= above + count) {
    const bool is_upper = missing <= above + upper_count;
    shared.prefix |= static_cast<unsigned>(is_upper ? upper : upper - 1) << shift;
    shared.missing = missing - above - (is_upper ? 0 : upper_count);
  }
  __syncthreads();
}

// Selects the keys above shared.prefix and the first shared.missing equal to it.
template <int kPacks>
__device__ void Compact(Shared& shared, const float* scores, int visible,
                        const cuda::RowSelection& output) {
  constexpr int kLoads = kPacks * kWidth;
  constexpr int kWarpKeys = cuda::kWarpSize * kLoads;
  static_assert(kWarps * kWarpKeys < 0x10000, "the counts of a turn fit half a word");
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const unsigned lower_lanes = (1U << lane) - 1U;
  const unsigned threshold = shared.prefix;
  const int ties_wanted = shared.missing;
  unsigned* sums = shared.warp_sums;
  unsigned* next_sums = shared.next_warp_sums;
  int above = 0;  // keys above the threshold so far, and equal to it
  int equal = 0;
  for (int base = 0; base < visible; base += kWarps * kWarpKeys) {
    const int first = base + warp * kWarpKeys + lane;
    unsigned keys[kLoads];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int i = first + load * cuda::kWarpSize;
      keys[load] =
          i < visible ? cuda::ScoreKey(scores[i]) : 0U;  // 0 is the key of a NaN, never selected
    }
    unsigned counts = 0;  // both in one word
#pragma unroll
    for (const unsigned key : keys) {
      counts += (key > threshold ? 0x10000U : 0U) + (key == threshold ? 1U : 0U);
    }
    const cuda::WarpSums turn =
        cuda::SumOverWarps<kWarps>(__reduce_add_sync(cuda::kAllLanes, counts), sums);
    int warp_above = above + static_cast<int>(turn.before >> 16);
    int warp_equal = equal + static_cast<int>(turn.before & 0xFFFFU);
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const unsigned above_lanes = __ballot_sync(cuda::kAllLanes, keys[load] > threshold);
      const unsigned equal_lanes = __ballot_sync(cuda::kAllLanes, keys[load] == threshold);
      if ((above_lanes | equal_lanes) == 0) {
        continue;  // as most are
      }
      const int keys_above = warp_above + __popc(above_lanes & lower_lanes);
      const int ties = warp_equal + __popc(equal_lanes & lower_lanes);
      const bool is_selected =
          keys[load] > threshold || (keys[load] == threshold && ties < ties_wanted);
      const int position = first + load * cuda::kWarpSize;
      if (is_selected) {
        output.List(keys_above + min(ties, ties_wanted), position);
      }
      if (output.mask != nullptr) {
        const unsigned bits = __ballot_sync(cuda::kAllLanes, is_selected);
        if (lane == 0 && bits != 0) {
          output.mask[position / cuda::kWarpSize] = bits;
        }
      }
      warp_above += __popc(above_lanes);
      warp_equal += __popc(equal_lanes);
    }
    above += static_cast<int>(turn.all >> 16);
    equal += static_cast<int>(turn.all & 0xFFFFU);
    unsigned* const used = sums;
    sums = next_sums;
    next_sums = used;
  }
}

// `kPacks` loads of a thread are on their way at once.
template <int kPacks, int kBlocks>
__global__ __launch_bounds__(kThreads, kBlocks) void SelectTopKKernel(
    const __grid_constant__ SelectTopKParams p) {
  __shared__ Shared shared;
  const std::int64_t row = blockIdx.x;
  const int k = static_cast<int>(p.k);
  const int visible = p.rows.positions.data[row] + 1;
  const int count = min(k, visible);
  const float* scores = p.scores.Row(row);
  const cuda::RowSelection output(p, row);
  for (int digit = static_cast<int>(threadIdx.x); digit < kDigits; digit += kThreads) {
    shared.histogram[digit] = 0;
  }
  if (threadIdx.x == 0) {
    shared.prefix = 0;
    shared.missing = k;
  }
  __syncthreads();

  constexpr int kShifts[] = {32 - kDigitBits, 32 - 2 * kDigitBits, 0};
  const bool thread_nan = CountDigits<kPacks>(shared, scores, visible, kShifts[0], 0U);
  const bool has_nan = __syncthreads_or(static_cast<int>(thread_nan)) != 0;
  if (threadIdx.x == 0) {
    p.counts.data[row] = count;
    if (has_nan) {
      p.faults.data[row] |= kRowFaultIndexerNan;
    }
  }
  if (visible <= k || has_nan) {
    output.SelectFirst<kThreads>(count, k);
    return;
  }
  // Words without a selected key are not written again.
  for (int word = static_cast<int>(threadIdx.x); word < output.mask_words; word += kThreads) {
    output.mask[word] = 0U;
  }
  AppendDigit(shared, kShifts[0]);
  for (int pass = 1; pass < 3; ++pass) {
    CountDigits<kPacks>(shared, scores, visible, kShifts[pass], ~0U << kShifts[pass - 1]);
    __syncthreads();
    AppendDigit(shared, kShifts[pass]);
  }
  Compact<kPacks>(shared, scores, visible, output);
}

}  // namespace

void cuda::SelectTopK(const SelectTopKParams& params, cudaStream_t stream) {
  const SelectTopKExtents extents = Validate(params);
  if (extents.tokens == 0) {
    return;
  }
  // A long row of few is read with twice the loads on their way, which leaves registers for one
  // block a multiprocessor.
  constexpr std::int64_t kLong = 16384;
  const std::int64_t visible_max =
      params.rows.visible_max > 0 ? params.rows.visible_max : params.scores.cols;
  const bool is_wide = extents.tokens <= cuda::kMultiprocessors && visible_max > kLong;
  const auto kernel = is_wide ? SelectTopKKernel<4, 1> : SelectTopKKernel<2, 2>;
  kernel<<<static_cast<unsigned>(extents.tokens), kThreads, 0, stream>>>(params);
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dsa
