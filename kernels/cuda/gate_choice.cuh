// The gate's choice: a warp per token adds the parts of its logits and takes the K largest, one
// after the other.  The lanes hold the candidates, as integers that order as they do.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/ops/gate.h"

#include <cfloat>
#include <cstdint>

namespace dsa::cuda {

// Logits come in parts, over slices of so many columns, [slices, T, GateLogitStride] in float32.
inline constexpr int kGateSliceColumns = 1024;

// Logits from one row of a part to the next: whole packs of four.
__host__ __device__ inline std::int64_t GateLogitStride(std::int64_t experts) {
  return (experts + 3) / 4 * 4;
}
__host__ __device__ inline std::int64_t GateSlices(std::int64_t hidden) {
  return (hidden + kGateSliceColumns - 1) / kGateSliceColumns;
}

// Candidates are finite: NaN and -inf count as the lowest finite value.
__device__ inline float AsCandidate(float value) {
  return value > -FLT_MAX ? value : -FLT_MAX;
}

// Orders candidates as unsigned integers; -0 equals +0.  Never 0, which marks what may not be
// chosen.
__device__ inline unsigned KeyOf(float value) {
  const unsigned bits = __float_as_uint(value == 0.0F ? 0.0F : value);
  const auto sign = static_cast<unsigned>(static_cast<int>(bits) >> 31);
  return bits ^ (sign | 0x80000000U);
}

// The id of the largest key of the warp's candidates, of which a lane has 32 i + lane in keys[i];
// the lower id on ties.  It is taken out.
template <int kPerLane>
__device__ int TakeLargest(unsigned (&keys)[kPerLane], int lane) {
  unsigned best = keys[0];
  int place = 0;
#pragma unroll
  for (int i = 1; i < kPerLane; ++i) {
    if (keys[i] > best) {
      best = keys[i];
      place = i;
    }
  }
  const unsigned largest = __reduce_max_sync(kAllLanes, best);
  const auto own = static_cast<unsigned>(place * kWarpSize + lane);
  const auto id =
      static_cast<int>(__reduce_min_sync(kAllLanes, best == largest ? own : 0xFFFFFFFFU));
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    keys[i] = i * kWarpSize + lane == id ? 0 : keys[i];
  }
  return id;
}

// The sum of the two largest of values[0, count), by `lanes` adjacent lanes, a power of two.
__device__ inline float SumOfTwoLargest(const float* values, int count, int lanes, int lane) {
  float first = -FLT_MAX;
  float second = -FLT_MAX;
#pragma unroll 1
  for (int i = lane % lanes; i < count; i += lanes) {
    second = fmaxf(second, fminf(first, values[i]));
    first = fmaxf(first, values[i]);
  }
#pragma unroll 1
  for (int offset = 1; offset < lanes; offset *= 2) {
    const float other_first = __shfl_xor_sync(kAllLanes, first, offset);
    const float other_second = __shfl_xor_sync(kAllLanes, second, offset);
    second = fmaxf(fmaxf(second, other_second), fminf(first, other_first));
    first = fmaxf(first, other_first);
  }
  return count == 1 ? first : AsCandidate(first + second);
}

// Marks the experts of all but the best groups.  Leaves other values in `biased`.
template <int kPerLane>
__device__ void DropGroups(const GateParams& p, float* biased, int lane,
                           unsigned (&keys)[kPerLane]) {
  const int groups = static_cast<int>(p.groups);
  const int size = static_cast<int>(p.weight.rows) / groups;
  int lanes = 1;  // of a group
  while (2 * lanes * groups <= kWarpSize) {
    lanes *= 2;
  }
  unsigned group_keys[kPerLane] = {};
  const int at_once = kWarpSize / lanes;
  for (int first = 0; first < groups; first += at_once) {
    const int group = first + lane / lanes;
    const float score =
        SumOfTwoLargest(biased + group * size, group < groups ? size : 0, lanes, lane);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int wanted = i * kWarpSize + lane - first;  // its place among these
      const float value = __shfl_sync(kAllLanes, score, max(0, min(wanted, at_once - 1)) * lanes);
      if (wanted >= 0 && wanted < at_once && first + wanted < groups) {
        group_keys[i] = KeyOf(value);
      }
    }
  }
#pragma unroll 1
  for (int i = 0; i < static_cast<int>(p.groups_kept); ++i) {
    TakeLargest(group_keys, lane);
  }
  __syncwarp();  // the biased scores were read
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    if (i * kWarpSize + lane < groups) {
      biased[i * kWarpSize + lane] = group_keys[i] == 0 ? 1.0F : 0.0F;  // kept
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * kWarpSize + lane;
    keys[i] = e < groups * size && biased[e / size] != 0.0F ? keys[i] : 0U;
  }
}

// A lane's candidates at a time, in packs of four neighbours: 128 experts a pack of the warp.
inline constexpr int kLogitPacks = 2;
inline constexpr int kPackExperts = 4 * kWarpSize;

// The logits of a lane's packs from `first` on: the parts added in order.  What is beyond the last
// expert is not defined.
__device__ inline void AddLogitParts(const GateParams& p, const float* logits, std::int64_t token,
                                     int first, int lane, bool is_read,
                                     float4 (&sums)[kLogitPacks]) {
  constexpr int kAtOnce = 8;  // as many slices are under way
  const int experts = static_cast<int>(p.weight.rows);
  const int slices = static_cast<int>(GateSlices(p.x.cols));
  const int stride = static_cast<int>(GateLogitStride(p.weight.rows));
  const std::int64_t slice_stride = p.x.rows * stride;
#pragma unroll
  for (float4& sum : sums) {
    sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
  }
#pragma unroll 1
  for (int begin = 0; begin < slices; begin += kAtOnce) {
    float4 loaded[kLogitPacks][kAtOnce];
#pragma unroll
    for (int pack = 0; pack < kLogitPacks; ++pack) {
      const int own = first + pack * kPackExperts + 4 * lane;
      const float* const parts = logits + token * stride + own;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        loaded[pack][i] =
            is_read && own < experts && begin + i < slices
                ? __ldcg(reinterpret_cast<const float4*>(parts + (begin + i) * slice_stride))
                : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
      }
    }
#pragma unroll
    for (int pack = 0; pack < kLogitPacks; ++pack) {
#pragma unroll
      for (const float4& part : loaded[pack]) {
        sums[pack].x += part.x;
        sums[pack].y += part.y;
        sums[pack].z += part.z;
        sums[pack].w += part.w;
      }
    }
  }
}

// What a warp needs of shared memory to choose.
template <int kPerLane>
struct ChoiceShared {
  float scores[kPerLane * kWarpSize];
  union {
    float biased[kPerLane * kWarpSize];
    int chosen[kPerLane * kWarpSize];
  };
};

__device__ inline float ScoreOf(float logit) {
  return 1.0F / (1.0F + expf(-logit));
}

// The scores of one token and the keys of the biased ones, by a warp.
template <int kPerLane>
__device__ inline void ScoreExperts(const GateParams& p, const float* logits, std::int64_t token,
                                    int lane, ChoiceShared<kPerLane>& shared, bool is_rehearsal,
                                    unsigned (&keys)[kPerLane]) {
  const int experts = static_cast<int>(p.weight.rows);
  // A loop, as what is unrolled runs once a layer, cold.
#pragma unroll 1
  for (int first = 0; first < experts; first += kLogitPacks * kPackExperts) {
    float bias[kLogitPacks][4];
#pragma unroll
    for (int pack = 0; pack < kLogitPacks; ++pack) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = first + pack * kPackExperts + 4 * lane + i;
        bias[pack][i] = e < experts ? p.bias.data[e] : 0.0F;
      }
    }
    float4 sums[kLogitPacks];
    AddLogitParts(p, logits, token, first, lane, !is_rehearsal, sums);
#pragma unroll
    for (int pack = 0; pack < kLogitPacks; ++pack) {
      if (first + pack * kPackExperts >= experts) {
        break;
      }
      const float values[4] = {sums[pack].x, sums[pack].y, sums[pack].z, sums[pack].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = first + pack * kPackExperts + 4 * lane + i;
        if (e < experts) {
          const float score = ScoreOf(values[i]);
          shared.scores[e] = score;
          shared.biased[e] = AsCandidate(score + bias[pack][i]);
        }
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = i * kWarpSize + lane;
    keys[i] = e < experts ? KeyOf(shared.biased[e]) : 0U;
  }
}
// Of no more experts than lanes, one each.
__device__ inline void ScoreExperts(const GateParams& p, const float* logits, std::int64_t token,
                                    int lane, ChoiceShared<1>& shared, bool is_rehearsal,
                                    unsigned (&keys)[1]) {
  constexpr int kAtOnce = 8;  // slices
  const bool has_expert = lane < static_cast<int>(p.weight.rows);
  const int slices = static_cast<int>(GateSlices(p.x.cols));
  const std::int64_t stride = GateLogitStride(p.weight.rows);
  const float* const parts = logits + token * stride + lane;
  const float bias = has_expert ? p.bias.data[lane] : 0.0F;
  float sum = 0.0F;
#pragma unroll 1
  for (int begin = 0; begin < slices; begin += kAtOnce) {
    float loaded[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      loaded[i] = has_expert && !is_rehearsal && begin + i < slices
                      ? __ldcg(parts + (begin + i) * p.x.rows * stride)
                      : 0.0F;
    }
#pragma unroll
    for (const float part : loaded) {
      sum += part;
    }
  }
  const float score = ScoreOf(sum);
  const float biased = AsCandidate(score + bias);
  shared.scores[lane] = score;
  shared.biased[lane] = biased;
  keys[0] = has_expert ? KeyOf(biased) : 0U;
}

// The experts and weights of one token, by a warp.  E <= 32 kPerLane.  A rehearsal goes through the
// same instructions, reads nothing but the bias and writes nothing: before the kernels ahead have
// ended it brings them to the caches.
template <int kPerLane>
__device__ void ChooseExperts(const GateParams& p, const float* logits, std::int64_t token,
                              int lane, ChoiceShared<kPerLane>& shared, bool is_rehearsal = false) {
  const bool is_counted = !is_rehearsal && p.expert_pairs.data != nullptr &&
                          (p.live_rows.data == nullptr || token < __ldg(p.live_rows.data));
  unsigned keys[kPerLane];
  ScoreExperts(p, logits, token, lane, shared, is_rehearsal, keys);
  __syncwarp();
  if (p.groups_kept < p.groups) {
    DropGroups(p, shared.biased, lane, keys);
  }
  __syncwarp();  // nobody reads the biased scores any more

  // Choice.
  const int chosen = static_cast<int>(p.experts.cols);
  float sum = 0.0F;
#pragma unroll 1
  for (int k = 0; k < chosen; ++k) {
    const int id = TakeLargest(keys, lane);
    sum += shared.scores[id];
    if (lane == 0) {
      shared.chosen[k] = id;
    }
  }
  __syncwarp();
  constexpr float kTiny = 1e-20F;  // keeps a sum of zeros from dividing by zero
  const float divisor = p.normalize ? sum + kTiny : 1.0F;
#pragma unroll 1  // of one turn
  for (int k = lane; k < chosen; k += kWarpSize) {
    const int id = shared.chosen[k];
    const float weight = shared.scores[id] / divisor * p.scale;
    if (!is_rehearsal) {
      p.experts.Row(token)[k] = id;
      p.weights.Row(token)[k] = weight;
    }
    if (is_counted) {
      atomicAdd(p.expert_pairs.data + id, 1);  // nobody waits for it
    }
  }
}

}  // namespace dsa::cuda
