// Rows of x and scales in the resident launch of experts (resident_experts.cuh): what the input
// warps of a block bring to its ring, stage by stage in turns.
#pragma once

#include "kernels/cuda/fp8_stage.cuh"
#include "kernels/cuda/resident_expert_work.cuh"

#include <cstdint>

namespace dsa::cuda::resident_experts {

// The next tile, for the input warp and the consumers.
template <bool kPaired>
__device__ inline Task NextTask(BlockShared<kPaired>& shared, Cursor& turn, int lane) {
  ptx::BarrierWait(ptx::SharedAddress(shared.announced + turn.stage), turn.phase);
  const Task task = shared.queue[turn.stage];
  __syncwarp();
  if (lane == 0) {
    ptx::BarrierArrive(ptx::SharedAddress(shared.taken + turn.stage));
  }
  turn.Next(kQueue);
  return task;
}

// Where a lane of the input warp reads: rows of x or of the inner activations, and scales.
template <Inner kInner, bool kPaired>
struct InputSource {
  static constexpr int kChunks = kValuesPerScale / 16;
  static constexpr int kRowsAtOnce = kWarpSize / kChunks;
  static constexpr int kRows = kTilePairs / kRowsAtOnce;  // of a lane
  static constexpr int kScaleRows = kTilePairs / kWarpSize;
  // Of a lane's first column in each of its rows; of the first scale.  Offsets, since pointers of
  // 16 rows would not stay in registers.
  const Fp8E4m3* values;
  const float* scales;
  unsigned rows[kRows];
  unsigned row_scales[kScaleRows];
  int count;                   // of pairs
  const float* weight_scales;  // of lanes 0 and 1

  __device__ static int PairOf(int i, int lane) { return lane / kChunks + kRowsAtOnce * i; }

  __device__ InputSource(const ExpertsParams& p, const Task& task, int lane) : count(task.count) {
    const int kind = task.expert == p.choice.expert_count ? kShared : kRouted;
    const bool is_inner = task.kind != TaskKind::kOuter;
    const bool is_given = kInner != Inner::kWhole && !is_inner && kind == kShared;
    const bool is_part = kInner == Inner::kParts && task.kind == TaskKind::kPart;
    const int inner_blocks = static_cast<int>(p.x.cols) / kValuesPerScale;  // of K
    const int outer_blocks = p.width / kValuesPerScale;
    // Rows of x and what was given are those of tokens, the others those of sorted pairs.
    const auto row_of = [&](int pair) {
      if (is_part) {  // whose pairs are not sorted yet
        return pair;
      }
      return is_inner || is_given ? p.sorted.tokens[task.first + pair] : task.first + pair;
    };
    Matrix<const Fp8E4m3> values_of = {.data = p.inner, .row_stride = p.width};
    Matrix<const float> scales_of = {.data = p.inner_scales, .row_stride = outer_blocks};
    if (is_inner) {
      values_of = p.x;
      scales_of = p.x_scales;
    } else if (is_given) {
      values_of = {.data = p.given.y.values.data, .row_stride = p.given.y.values.row_stride};
      scales_of = {.data = p.given.y.scales.data, .row_stride = p.given.y.scales.row_stride};
    }
    values = values_of.data + lane % kChunks * 16;
    scales = scales_of.data;
    // Each row is loaded once a warp: all warps of all blocks ask for the same few lines.
    int own_rows[kScaleRows];
#pragma unroll
    for (int i = 0; i < kScaleRows; ++i) {
      const int pair = lane + kWarpSize * i;
      own_rows[i] = pair < count ? row_of(pair) : 0;
      row_scales[i] = own_rows[i] * static_cast<unsigned>(scales_of.row_stride);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      rows[i] = __shfl_sync(kAllLanes, own_rows[i * kRowsAtOnce / kWarpSize],
                            PairOf(i, lane) % kWarpSize) *
                static_cast<unsigned>(values_of.row_stride);
    }
    const int own = kind == kShared ? 0 : task.expert;
    if (is_inner) {
      const bool is_gate = (lane == 0) != (kPaired && p.up_is_first);
      const Matrix<const float>& scales = is_gate ? p.scales[kind].gate : p.scales[kind].up;
      weight_scales = scales.Row(own * outer_blocks + task.column);
    } else {
      // The last tile may have one box only.  Of a pair either block has one.
      const int own_box = kPaired ? static_cast<int>(ptx::ClusterRank()) : lane % 2;
      const int box = min(2 * task.column + own_box, inner_blocks - 1);
      weight_scales = p.scales[kind].down.Row(own * inner_blocks + box);
    }
  }
};

// Until rows of x may be read (AnnounceRows).
template <bool kPaired>
__device__ inline void WaitForRows(const ExpertsParams& p, BlockShared<kPaired>& shared,
                                   int input_warp, int lane) {
  const unsigned there = ptx::SharedAddress(&shared.rows_there);
  if (input_warp == 0 && lane == 0) {
    WaitToGoOn(p.counters, 64);
    ptx::BarrierArrive(there);
  }
  __syncwarp();
  ptx::BarrierWait(there, 0);
}

// What input warps of pairs of blocks do first, while the gate still chooses: a stage each of a
// tile without pairs, of which nothing is asked for.  Of more rows the product beside the gate
// takes as long as the gate, so that no time is left for it.
inline constexpr int kInputRehearsedRows = 32;  // at most
template <bool kPaired>
__device__ inline Task InputRehearsalOf(const ExpertsParams& p) {
  Task task = RehearsalOf(p, 0);
  task.count = 0;
  task.end_block = Layout<kPaired>::kInputWarps;
  return task;
}

template <Inner kInner, bool kPaired>
__device__ void LoadInput(const ExpertsParams& p, BlockShared<kPaired>& shared,
                          const Ring<kPaired>& ring, int input_warp, int lane) {
  Cursor at;
  Cursor turn;
#pragma unroll 1
  for (int index = kPaired && p.x.rows <= kInputRehearsedRows ? 0 : 1;; ++index) {
    const bool is_rehearsal = index == 0;
    const Task task = is_rehearsal ? InputRehearsalOf<kPaired>(p) : NextTask(shared, turn, lane);
    if (task.kind == TaskKind::kNone) {
      return;
    }
    if constexpr (kInner == Inner::kParts) {
      if (task.kind != TaskKind::kPart) {
        ptx::WaitForPredecessors();
      } else if (at.turn == 0) {
        WaitForRows(p, shared, input_warp, lane);
      }
    }
    using Source = InputSource<kInner, kPaired>;
    const Source source(p, task, lane);
    if (task.kind == TaskKind::kOuter) {
      const bool is_given = kInner != Inner::kWhole && task.expert == p.choice.expert_count;
      const int warps = is_given ? static_cast<int>(gridDim.x)  // that activate
                                 : p.width / kBoxRows * kInnerSignals<kPaired>;
      WaitUntil(p.counters.inner_done + task.group, warps, 64, lane);
    }
    for (int k = task.first_block; k < task.end_block; ++k) {
      if (at.turn % ring.kInputWarps != input_warp) {
        at.Next(ring.kStages);
        continue;
      }
      if (at.turn >= ring.kStages) {
        ptx::BarrierWait(ring.empty + 8 * at.stage, at.phase ^ 1U);
      }
      const unsigned inputs = ring.inputs + at.stage * ring.kInputBytes;
      const unsigned scales = ring.scales + at.stage * ring.kScaleBytes;
#pragma unroll
      for (int i = 0; i < Source::kRows; ++i) {
        const int pair = Source::PairOf(i, lane);
        if (pair < source.count) {
          const int place = lane % Source::kChunks ^ (pair % 8);  // the 128-byte swizzle
          ptx::CopyAsync16(inputs + pair * kValuesPerScale + place * 16,
                           source.values + source.rows[i] + k * kValuesPerScale);
        }
      }
#pragma unroll
      for (int i = 0; i < Source::kScaleRows; ++i) {
        const int pair = lane + kWarpSize * i;
        if (pair < source.count) {
          ptx::CopyAsync4(scales + pair * 4, source.scales + source.row_scales[i] + k);
        }
      }
      if (!is_rehearsal) {
        if (lane < 2) {
          ptx::CopyAsync4(scales + (kTilePairs + lane) * 4, source.weight_scales + k);
        }
        ptx::CopyAsyncArrive(ring.full + 8 * at.stage);
        if (at.turn == input_warp && lane == 0) {
          ptx::BarrierArrive(ptx::SharedAddress(&shared.inputs_asked));
        }
      }
      at.Next(ring.kStages);
    }
    if (is_rehearsal) {
      at = Cursor{};
    }
  }
}

}  // namespace dsa::cuda::resident_experts
