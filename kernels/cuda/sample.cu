// Sample: a row is a cluster of eight blocks, each of which keeps an eighth of the vocabulary's
// logits in shared memory.  Logits are read once; everything after that stays on the chip.
//
//   block r    ids [r S, (r + 1) S)      S = ceil(limit / 8)
//   thread t   C adjacent ids of its block, C odd, so that a warp meets all banks
//
// An id and its logit are one 64-bit key, in the order of the contract: the higher logit, then the
// lower id.  Filters make logits -inf.  top_k and top_p find their last key by radix selection from
// the top, 11, 11, 10, 11, 11 and 10 bits: a histogram in every block, of counts or of masses,
// whose sums over the cluster every block takes for itself.  Most rows end after the third digit.
//
// A mass is the sum of weights exp((z - max) / temperature) as multiples of 2^-44: integers, so
// that no order of additions changes a bit.  Two 32-bit atomics with a carry make a 64-bit one.
#include "common/prng.h"
#include "kernels/batch_view.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/sample.h"

#include <cfloat>
#include <cmath>

#include <cooperative_groups.h>

namespace dsa {
namespace {

namespace cg = cooperative_groups;
using Key = unsigned long long;
using Mass = unsigned long long;

constexpr int kBlocks = 8;  // of a cluster; what every GPU of this architecture can place
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / cuda::kWarpSize;
constexpr int kDigits = 2048;
constexpr int kThreadDigits = kDigits / kThreads;
constexpr int kMassBits = 44;
constexpr std::int64_t kVocabularyMax = 1 << (62 - kMassBits);  // masses stay below 2^63
static_assert(kThreadDigits == 4, "a thread reads its digits as one uint4");

struct Shared {
  uint4 counts[kThreads];
  uint4 mass_low[kThreads];
  uint4 mass_high[kThreads];
  unsigned long long warp_values[kWarps];
  unsigned long long exchange[2];  // what the cluster reads, in turns
  Key top[kTopLogprobsMax];        // the block's largest keys
  unsigned long long found[3];     // of a digit: itself, what lies above it, its count
};

// One row in one block.  Every member function is called by all threads of the cluster.
class RowSampler {
 public:
  __device__ RowSampler(const SampleParams& params, Shared& shared, float* logits, int slice)
      : p_(params),
        shared_(shared),
        z_(logits),
        row_(blockIdx.x / kBlocks),
        rank_(static_cast<int>(cg::this_cluster().block_rank())),
        first_id_(rank_ * slice),
        ids_(max(0, min(slice, params.vocabulary_limit - first_id_))),
        chunk_first_(min(ids_, Chunk(slice) * static_cast<int>(threadIdx.x))),
        chunk_last_(min(ids_, chunk_first_ + Chunk(slice))),
        wanted_(params.rows.data[row_]) {}

  __device__ void Run() {
    const bool is_finite = Load();
    Key best = LargestKey(is_finite);
    if (best == kNotFinite) {
      Fail(kRowFaultLogits);
      return;
    }
    if (best == 0) {
      Fail(kRowFaultNoCandidate);
      return;
    }
    const double log_sum = LogSum(ValueOf(best));
    WriteTop(log_sum);
    if (wanted_.adjustments_count > 0) {
      Adjust();
      best = LargestKey(true);
    }
    if (wanted_.temperature > 0.0F) {
      Draw(ValueOf(best), log_sum);
    } else if (rank_ == 0 && threadIdx.x == 0) {
      WriteToken(IdOf(best), log_sum);
    }
  }

 private:
  __device__ static int Chunk(int slice) { return ((slice + kThreads - 1) / kThreads) | 1; }

  // Keys.  0 is no key, and a finite logit's is below kNotFinite.
  static constexpr Key kNotFinite = ~Key{0};
  __device__ static Key KeyOf(float value, int id) {
    if (value == -INFINITY) {
      return 0;
    }
    const unsigned bits = __float_as_uint(value == 0.0F ? 0.0F : value);
    const auto sign = static_cast<unsigned>(static_cast<int>(bits) >> 31);
    return static_cast<Key>(bits ^ (sign | 0x80000000U)) << 32 | ~static_cast<unsigned>(id);
  }
  __device__ static float ValueOf(Key key) {
    const auto high = static_cast<unsigned>(key >> 32);
    return __uint_as_float((high & 0x80000000U) != 0 ? high ^ 0x80000000U : ~high);
  }
  __device__ static int IdOf(Key key) { return static_cast<int>(~static_cast<unsigned>(key)); }
  __device__ Key KeyAt(int i) const { return KeyOf(z_[i], first_id_ + i); }

  // One value per thread, combined over the block, in the same order in every thread.
  template <typename Operation>
  __device__ unsigned long long CombineInBlock(unsigned long long value, const Operation& combine) {
    for (int offset = cuda::kWarpSize / 2; offset > 0; offset /= 2) {
      value = combine(value, __shfl_xor_sync(cuda::kAllLanes, value, offset));
    }
    if (threadIdx.x % cuda::kWarpSize == 0) {
      shared_.warp_values[threadIdx.x / cuda::kWarpSize] = value;
    }
    __syncthreads();
    value = shared_.warp_values[0];
    for (int warp = 1; warp < kWarps; ++warp) {
      value = combine(value, shared_.warp_values[warp]);
    }
    __syncthreads();
    return value;
  }
  // One value per block, in the order of blocks.  A slot is written again two calls later, when
  // every block has left the barrier of the call between.
  template <typename Operation>
  __device__ unsigned long long CombineBlocks(unsigned long long value, const Operation& combine,
                                              unsigned long long* before = nullptr) {
    unsigned long long* const slot = &shared_.exchange[turn_ % 2];
    ++turn_;
    if (threadIdx.x == 0) {
      *slot = value;
    }
    cg::cluster_group cluster = cg::this_cluster();
    cluster.sync();
    unsigned long long combined = *cluster.map_shared_rank(slot, 0);
    if (before != nullptr) {
      *before = 0;
    }
    for (int block = 1; block < kBlocks; ++block) {
      if (before != nullptr && block == rank_) {
        *before = combined;
      }
      combined = combine(combined, *cluster.map_shared_rank(slot, block));
    }
    return combined;
  }
  template <typename Operation>
  __device__ unsigned long long Combine(unsigned long long value, const Operation& combine) {
    return CombineBlocks(CombineInBlock(value, combine), combine);
  }
  __device__ static unsigned long long Sum(unsigned long long a, unsigned long long b) {
    return a + b;
  }

  // kNotFinite where one of the threads has met such a logit.
  __device__ Key LargestKey(bool is_finite) {
    Key best = is_finite ? 0 : kNotFinite;
    for (int i = chunk_first_; i < chunk_last_; ++i) {
      best = max(best, KeyAt(i));
    }
    return Combine(best, [](Key a, Key b) { return max(a, b); });
  }

  // The allowed logits; false where the thread met one that is not finite.
  __device__ bool Load() {
    const float* logits = p_.logits.Row(p_.logit_rows.data[row_]) + first_id_;
    const std::uint64_t* mask = wanted_.mask < 0 ? nullptr : p_.masks.Row(wanted_.mask);
    bool is_finite = true;
#pragma unroll 8
    for (int i = static_cast<int>(threadIdx.x); i < ids_; i += kThreads) {
      const float value = logits[i];
      const int id = first_id_ + i;
      is_finite = is_finite && isfinite(value);
      z_[i] = mask == nullptr || (mask[id / 64] >> (id % 64) & 1U) != 0 ? value : -INFINITY;
    }
    __syncthreads();
    ForAdjustments([this](int i, const LogitAdjustment& adjustment) {
      if (adjustment.add == -INFINITY) {
        z_[i] = -INFINITY;
      }
    });
    return is_finite;
  }

  __device__ void Adjust() {
    ForAdjustments([this](int i, const LogitAdjustment& adjustment) {
      const float z = z_[i];
      if (z == -INFINITY || adjustment.add == -INFINITY) {
        return;
      }
      const float repeated =
          z > 0.0F ? __fdiv_rn(z, adjustment.repetition) : __fmul_rn(z, adjustment.repetition);
      z_[i] = Finite(__fadd_rn(Finite(repeated), adjustment.add));
    });
  }
  __device__ static float Finite(float value) {
    return fminf(fmaxf(value, -FLT_MAX), FLT_MAX);
  }

  // body(i, adjustment) for those of the row whose id is the block's.
  template <typename Body>
  __device__ void ForAdjustments(const Body& body) {
    if (wanted_.adjustments_count == 0) {
      return;
    }
    const LogitAdjustment* adjustments = p_.adjustments.data + wanted_.adjustments_first;
    for (int j = static_cast<int>(threadIdx.x); j < wanted_.adjustments_count; j += kThreads) {
      const LogitAdjustment adjustment = adjustments[j];
      const int i = adjustment.id - first_id_;
      if (i >= 0 && i < ids_) {
        body(i, adjustment);
      }
    }
    __syncthreads();
  }

  __device__ double LogSum(float largest) {
    double sum = 0.0;
    for (int i = chunk_first_; i < chunk_last_; ++i) {
      sum += exp(static_cast<double>(z_[i]) - largest);
    }
    const auto bits = [](double value) {
      return static_cast<unsigned long long>(__double_as_longlong(value));
    };
    const auto value = [](unsigned long long word) {
      return __longlong_as_double(static_cast<long long>(word));
    };
    return largest + log(value(Combine(bits(sum),
                                       [&](auto a, auto b) { return bits(value(a) + value(b)); })));
  }

  // The thread's largest key below `bound`.
  __device__ Key LargestBelow(Key bound) const {
    Key best = 0;
    for (int i = chunk_first_; i < chunk_last_; ++i) {
      const Key key = KeyAt(i);
      best = key < bound ? max(best, key) : best;
    }
    return best;
  }

  __device__ void WriteTop(double log_sum) {
    const int wanted = wanted_.top_logprobs;
    cg::cluster_group cluster = cg::this_cluster();
    if (wanted > 0) {
      Key own = LargestBelow(~Key{0});
      for (int i = 0; i < wanted; ++i) {
        const Key best = CombineInBlock(own, [](Key a, Key b) { return max(a, b); });
        if (threadIdx.x == 0) {
          shared_.top[i] = best;
        }
        if (best != 0 && own == best) {
          own = LargestBelow(best);
        }
      }
      cluster.sync();
    }
    if (wanted == 0) {
      ClearTop();
      return;
    }
    if (rank_ != 0 || threadIdx.x >= cuda::kWarpSize) {
      return;
    }
    const int lane = static_cast<int>(threadIdx.x);
    Key taken = ~Key{0};
    for (int i = 0; i < kTopLogprobsMax; ++i) {
      Key best = 0;
      for (int j = lane; j < kBlocks * wanted; j += cuda::kWarpSize) {
        const Key key = *cluster.map_shared_rank(&shared_.top[j / kBlocks], j % kBlocks);
        best = key < taken ? max(best, key) : best;
      }
      for (int offset = cuda::kWarpSize / 2; offset > 0; offset /= 2) {
        best = max(best, __shfl_xor_sync(cuda::kAllLanes, best, offset));
      }
      const bool is_filled = i < wanted && best != 0;
      taken = best;
      if (lane == 0) {
        p_.top_ids.Row(row_)[i] = is_filled ? IdOf(best) : -1;
        p_.top_logprobs.Row(row_)[i] =
            is_filled ? static_cast<float>(static_cast<double>(ValueOf(best)) - log_sum) : 0.0F;
      }
    }
  }

  __device__ void ClearTop() {
    if (rank_ == 0 && threadIdx.x < kTopLogprobsMax) {
      p_.top_ids.Row(row_)[threadIdx.x] = -1;
      p_.top_logprobs.Row(row_)[threadIdx.x] = 0.0F;
    }
  }

  __device__ void Fail(std::int32_t fault) {
    ClearTop();
    if (rank_ == 0 && threadIdx.x == 0) {
      p_.tokens.data[row_] = 0;
      p_.logprobs.data[row_] = 0.0F;
      p_.faults.data[row_] |= fault;
    }
  }

  __device__ void WriteToken(int id, double log_sum) {
    const float logit = p_.logits.Row(p_.logit_rows.data[row_])[id];
    p_.tokens.data[row_] = id;
    p_.logprobs.data[row_] = static_cast<float>(static_cast<double>(logit) - log_sum);
  }

  __device__ Mass WeightAt(int i) const {
    if (z_[i] == -INFINITY) {
      return 0;
    }
    const double weight = exp((static_cast<double>(z_[i]) - largest_) * inverse_temperature_);
    return __double2ull_rn(weight * static_cast<double>(Mass{1} << kMassBits));
  }

  // Sums over the threads before the caller's and over all of the block.
  struct Scan {
    unsigned long long before;
    unsigned long long all;
  };
  __device__ Scan ScanInBlock(unsigned long long value) {
    const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
    const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
    unsigned long long inclusive = value;
    for (int offset = 1; offset < cuda::kWarpSize; offset *= 2) {
      const unsigned long long lower = __shfl_up_sync(cuda::kAllLanes, inclusive, offset);
      inclusive += lane >= offset ? lower : 0;
    }
    if (lane == cuda::kWarpSize - 1) {
      shared_.warp_values[warp] = inclusive;
    }
    __syncthreads();
    Scan scan = {.before = inclusive - value, .all = 0};
    for (int i = 0; i < kWarps; ++i) {
      scan.before += i < warp ? shared_.warp_values[i] : 0;
      scan.all += shared_.warp_values[i];
    }
    __syncthreads();
    return scan;
  }

  template <bool kOfMass>
  __device__ void CountDigits(Key prefix, Key high_mask, int shift, unsigned digit_mask) {
    shared_.counts[threadIdx.x] = {};
    shared_.mass_low[threadIdx.x] = {};
    shared_.mass_high[threadIdx.x] = {};
    __syncthreads();
    auto* counts = reinterpret_cast<unsigned*>(shared_.counts);
    auto* low = reinterpret_cast<unsigned*>(shared_.mass_low);
    auto* high = reinterpret_cast<unsigned*>(shared_.mass_high);
    for (int i = chunk_first_; i < chunk_last_; ++i) {
      const Key key = KeyAt(i);
      if (key == 0 || (key & high_mask) != prefix) {
        continue;
      }
      const unsigned digit = static_cast<unsigned>(key >> shift) & digit_mask;
      atomicAdd(&counts[digit], 1U);
      if constexpr (kOfMass) {
        const Mass weight = WeightAt(i);
        const auto weight_low = static_cast<unsigned>(weight);
        const unsigned stored = atomicAdd(&low[digit], weight_low);
        const unsigned carry = stored + weight_low < stored ? 1U : 0U;
        const unsigned weight_high = static_cast<unsigned>(weight >> 32) + carry;
        if (weight_high != 0) {
          atomicAdd(&high[digit], weight_high);
        }
      }
    }
  }

  // The largest key down to which the keys' count or mass reaches `wanted`, of [1, all of it].
  template <bool kOfMass>
  __device__ Key LastKey(unsigned long long wanted) {
    constexpr int kShifts[] = {53, 42, 32, 21, 10, 0};
    constexpr int kBits[] = {11, 11, 10, 11, 11, 10};
    cg::cluster_group cluster = cg::this_cluster();
    Key prefix = 0;
    Key high_mask = 0;
    for (int pass = 0; pass < 6; ++pass) {
      const int shift = kShifts[pass];
      const unsigned digit_mask = (1U << kBits[pass]) - 1U;
      CountDigits<kOfMass>(prefix, high_mask, shift, digit_mask);
      cluster.sync();
      // A thread's four digits, from the largest down.
      const int group = kThreads - 1 - static_cast<int>(threadIdx.x);
      unsigned long long counts[kThreadDigits] = {};
      unsigned long long amounts[kThreadDigits] = {};
      for (int block = 0; block < kBlocks; ++block) {
        const uint4 count = *cluster.map_shared_rank(&shared_.counts[group], block);
        Accumulate(counts, count, 0);
        if constexpr (kOfMass) {
          Accumulate(amounts, *cluster.map_shared_rank(&shared_.mass_low[group], block), 0);
          Accumulate(amounts, *cluster.map_shared_rank(&shared_.mass_high[group], block), 32);
        } else {
          Accumulate(amounts, count, 0);
        }
      }
      const unsigned long long sum = amounts[0] + amounts[1] + amounts[2] + amounts[3];
      unsigned long long above = ScanInBlock(sum).before;
      if (above < wanted && wanted <= above + sum) {
#pragma unroll
        for (int i = kThreadDigits - 1; i >= 0; --i) {
          if (above < wanted && wanted <= above + amounts[i]) {
            shared_.found[0] = static_cast<unsigned long long>(group * kThreadDigits + i);
            shared_.found[1] = above;
            shared_.found[2] = counts[i];
            break;
          }
          above += amounts[i];
        }
      }
      cluster.sync();  // nobody reads this block's digits any more
      prefix |= shared_.found[0] << shift;
      high_mask |= static_cast<Key>(digit_mask) << shift;
      wanted -= shared_.found[1];
      const unsigned long long count = shared_.found[2];
      if (count == 1 || (!kOfMass && count == wanted)) {
        break;  // the digit's keys are all taken
      }
      __syncthreads();
    }
    return prefix;
  }
  __device__ static void Accumulate(unsigned long long (&sums)[kThreadDigits], const uint4& words,
                                    int shift) {
    sums[0] += static_cast<unsigned long long>(words.x) << shift;
    sums[1] += static_cast<unsigned long long>(words.y) << shift;
    sums[2] += static_cast<unsigned long long>(words.z) << shift;
    sums[3] += static_cast<unsigned long long>(words.w) << shift;
  }

  // Drops what is below `last` and returns the mass of the thread's ids that stay.
  __device__ Mass Keep(Key last) {
    Mass mass = 0;
    for (int i = chunk_first_; i < chunk_last_; ++i) {
      if (KeyAt(i) < last) {
        z_[i] = -INFINITY;
      }
      mass += WeightAt(i);
    }
    return mass;
  }

  __device__ void Draw(float largest, double log_sum) {
    largest_ = largest;
    inverse_temperature_ = 1.0 / static_cast<double>(wanted_.temperature);

    // min_p and top_k.
    Key last = 0;
    if (wanted_.min_p > 0.0F || wanted_.top_k > 0) {
      // p / max p >= min_p, taken as a bound on logits: exact for min_p = 1.
      const double lowest = wanted_.min_p > 0.0F ? static_cast<double>(wanted_.temperature) *
                                                       log(static_cast<double>(wanted_.min_p))
                                                 : -static_cast<double>(INFINITY);
      unsigned long long kept = 0;
      for (int i = chunk_first_; i < chunk_last_; ++i) {
        if (static_cast<double>(z_[i]) - largest < lowest) {
          z_[i] = -INFINITY;
        }
        kept += z_[i] == -INFINITY ? 0 : 1;
      }
      kept = Combine(kept, Sum);
      if (wanted_.top_k > 0 && static_cast<unsigned long long>(wanted_.top_k) < kept) {
        last = LastKey<false>(static_cast<unsigned long long>(wanted_.top_k));
      }
    }
    Mass own = Keep(last);

    // top_p.
    if (wanted_.top_p < 1.0F) {
      const double total = static_cast<double>(Combine(own, Sum));
      const double wanted = ceil(static_cast<double>(wanted_.top_p) * total);
      own = Keep(LastKey<true>(max(Mass{1}, static_cast<Mass>(wanted))));
    }

    // The draw: the id at which the running mass exceeds a share of the total.
    const Scan scan = ScanInBlock(own);
    Mass before = 0;
    const Mass total = CombineBlocks(scan.all, Sum, &before);
    const double uniform =
        CounterUniform(wanted_.seed, static_cast<std::uint64_t>(wanted_.position));
    const auto target = static_cast<Mass>(static_cast<double>(total) * uniform);
    Mass sum = before + scan.before;
    if (sum <= target && target < sum + own) {
      for (int i = chunk_first_; i < chunk_last_; ++i) {
        sum += WeightAt(i);
        if (sum > target) {
          WriteToken(first_id_ + i, log_sum);
          break;
        }
      }
    }
  }

  const SampleParams& p_;
  Shared& shared_;
  float* const z_;  // [S]  -inf: not to be sampled
  const std::int64_t row_;
  const int rank_;
  const int first_id_;
  const int ids_;          // of the block
  const int chunk_first_;  // of the thread, in the block
  const int chunk_last_;
  const SamplingRow wanted_;
  int turn_ = 0;
  double largest_ = 0.0;
  double inverse_temperature_ = 0.0;
};

// Two blocks a multiprocessor: with more registers 64 rows, 512 blocks, would run in four waves.
__global__ __launch_bounds__(kThreads, 2)
    __cluster_dims__(kBlocks) void SampleKernel(const __grid_constant__ SampleParams p, int slice) {
  extern __shared__ __align__(16) std::uint8_t memory[];
  cuda::StartAfterPredecessors();
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  RowSampler(p, shared, reinterpret_cast<float*>(memory + sizeof(Shared)), slice).Run();
  cg::this_cluster().sync();  // a block's memory lives until nobody reads it
}

}  // namespace

void cuda::Sample(const SampleParams& params, cudaStream_t stream) {
  const SampleExtents extents = Validate(params);
  if (extents.rows == 0) {
    return;
  }
  constexpr int kSharedBytesMax = 224 * 1024;  // of 227 a block may have on sm_90
  const int slice = (params.vocabulary_limit + kBlocks - 1) / kBlocks;
  const int shared_bytes = static_cast<int>(sizeof(Shared)) + slice * 4;
  DSA_CHECK(extents.vocabulary <= kVocabularyMax && shared_bytes <= kSharedBytesMax,
            "Sample: V={}, limit {}", extents.vocabulary, kVocabularyMax);
  DSA_CUDA_CHECK(cudaFuncSetAttribute(SampleKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      kSharedBytesMax));
  cuda::LaunchDependent(SampleKernel,
                        {.grid = static_cast<unsigned>(extents.rows * kBlocks),
                         .threads = kThreads,
                         .shared_bytes = shared_bytes},
                        stream, params, slice);
}

}  // namespace dsa
