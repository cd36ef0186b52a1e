// Gate and up of the shared expert in parts of K (resident_experts.cuh): where consumers leave a
// part's sums, and the warps that add them up and activate.
#pragma once

#include "kernels/cuda/quantize_fp8.cuh"
#include "kernels/cuda/resident_expert_work.cuh"
#include "kernels/cuda/swiglu.cuh"

#include <cstdint>

namespace dsa::cuda::resident_experts {

// Where a warp's sums of a part lie: float4 of a lane, those of a box and eight pairs together.
__device__ inline float4* PartSums(const ExpertsParams& p, int column, int part, int box, int pack,
                                   int warp, int lane) {
  const int place = (box * (kPartPairs / 8) + pack) * kConsumerWarps + warp;
  return p.part_sums + (column * kParts + part) * kPartPacks + place * kWarpSize + lane;
}

template <int kTokens>
__device__ void StorePart(const ExpertsParams& p, const Task& task, int warp, int lane,
                          const float (&sum)[2][kTokens / 2]) {
#pragma unroll
  for (int box = 0; box < 2; ++box) {
#pragma unroll
    for (int pack = 0; pack < kTokens / 8; ++pack) {
      const float* const values = &sum[box][4 * pack];
      *PartSums(p, task.column, task.part, box, pack, warp, lane) =
          make_float4(values[0], values[1], values[2], values[3]);
    }
  }
  Signal(p.counters.parts_done + task.column, lane);
}

// The sums of a box over the parts of a tile, in the order of K.
__device__ inline float4 AddParts(const ExpertsParams& p, int column, int box, int pack, int warp,
                                  int lane) {
  float4 parts[kParts];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    parts[part] = __ldcg(PartSums(p, column, part, box, pack, warp, lane));
  }
  float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    sum.x += parts[part].x;
    sum.y += parts[part].y;
    sum.z += parts[part].z;
    sum.w += parts[part].w;
  }
  return sum;
}

// This block's share of the activation of what was computed in parts: 128 outputs of eight rows at
// a time.  One warp, which holds of all consumer warps' sums what its lane had.
__device__ inline void ActivateParts(const ExpertsParams& p, const Work& work, int lane) {
  const int tokens = static_cast<int>(p.x.rows);
  const QuantizedView& y = p.given.y;
  for (int unit = static_cast<int>(blockIdx.x); unit < work.inner_tiles * ((tokens + 7) / 8);
       unit += static_cast<int>(gridDim.x)) {
    const int column = unit % work.inner_tiles;
    const int pack = unit / work.inner_tiles;
    WaitUntil(p.counters.parts_done + column, kParts * kConsumerWarps, 64, lane);
    float values[kConsumerWarps][4];  // [][2 h + i]: output 16 w + g + 8 h of row 8 pack + 2 q + i
    float amax[2] = {};
#pragma unroll
    for (int w = 0; w < kConsumerWarps; ++w) {
      const float4 gate = AddParts(p, column, 0, pack, w, lane);
      const float4 up = AddParts(p, column, 1, pack, w, lane);
      const auto activated = [](float of_gate, float of_up) {
        return Rounded<__nv_bfloat16>(
            SwiGluOf(Rounded<__nv_bfloat16>(of_gate), Rounded<__nv_bfloat16>(of_up)));
      };
      values[w][0] = activated(gate.x, up.x);
      values[w][1] = activated(gate.y, up.y);
      values[w][2] = activated(gate.z, up.z);
      values[w][3] = activated(gate.w, up.w);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        amax[i % 2] = fmaxf(amax[i % 2], fabsf(values[w][i]));
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int offset = 4; offset < kWarpSize; offset *= 2) {
        amax[i] = fmaxf(amax[i], __shfl_xor_sync(kAllLanes, amax[i], offset));
      }
      const int token = 8 * pack + 2 * (lane % 4) + i;
      if (token < tokens) {
        const float scale = BlockScale(amax[i], y.format);
        const ScaleDivisor divided(scale, y.format);
        auto* const row =
            reinterpret_cast<std::uint8_t*>(y.values.Row(token)) + column * kBoxRows + lane / 4;
#pragma unroll
        for (int w = 0; w < kConsumerWarps; ++w) {
          row[16 * w] = ToFp8(divided(values[w][i]));
          row[16 * w + 8] = ToFp8(divided(values[w][2 + i]));
        }
        if (lane < 4) {
          y.scales.Row(token)[column] = scale;
        }
      }
    }
  }
  Signal(p.counters.inner_done + work.groups - 1, lane);
}

}  // namespace dsa::cuda::resident_experts
