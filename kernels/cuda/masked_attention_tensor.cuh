// MaskedAttention of bfloat16 on the tensor cores: keys and values by row_product.cuh, then a block
// of 8 warps with 128 rows of a run and one head, 64 keys at a time.
//
//   Q   [128, N + 64]   a warp has 16 rows
//   K   [64, N + 64]    two tiles of keys and values: one is on its way while one is multiplied
//   V   [64, kValues]
//   S   Q K^T           16 x 64 a warp, masked by position and by the selection's bits
//   O   += P V          16 x kValues a warp; P in bfloat16 straight from the registers of S
#pragma once

#include "kernels/cuda/masked_attention_runs.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/row_product.cuh"

namespace dsa::cuda {

// kValues: V is at most that.
template <int kValues>
struct MaskedTile {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = kWarps * 16;
  static constexpr int kKeys = kMaskBits;
  static constexpr int kKeyTiles = kKeys / 8;
  static constexpr int kValueTiles = kValues / 8;
  static constexpr int kValueStride = kValues * 2 + 16;  // bytes

  // Bytes of a row of Q and K.
  __host__ __device__ static int KeyStride(const MaskedScratch& scratch) {
    return (scratch.key_width + kLatentRopeValues) * 2 + 16;
  }
  __host__ __device__ static int SharedBytes(const MaskedScratch& scratch) {
    return (kRows + 2 * kKeys) * KeyStride(scratch) + 2 * kKeys * kValueStride;
  }

  const MaskedAttentionParams& p;
  const MaskedScratch& scratch;
  std::uint8_t* shared;

  __device__ std::uint8_t* Queries() const { return shared; }
  __device__ std::uint8_t* Keys(int stage) const {
    return shared + (kRows + stage * kKeys) * KeyStride(scratch);
  }
  __device__ std::uint8_t* Values(int stage) const {
    return Keys(2) + stage * kKeys * kValueStride;
  }

  // Columns of Q: N, zeros up to the width of a key, 64 rotated.
  __device__ void LoadQueries(const AttentionRun& run, int first, std::int64_t head) const {
    const int nope = static_cast<int>(p.w_uk.heads);
    const int packs = (scratch.key_width + kLatentRopeValues) / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * packs; i += kThreads) {
      const int row = i / packs;
      const int column = i % packs * 8;
      Pack<__nv_bfloat16, 8> pack = {};
      if (first + row < run.rows) {
        const auto* q = static_cast<const __nv_bfloat16*>(p.q.data) +
                        (run.first_row + first + row) * p.q.row_stride + head * p.q.head_stride;
        if (column >= scratch.key_width) {
          pack = LoadPack<8>(q + nope + column - scratch.key_width);
        } else if (column + 8 <= nope) {
          pack = LoadPack<8>(q + column);
        } else {
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            pack.values[j] = column + j < nope ? q[column + j] : __nv_bfloat16{};
          }
        }
      }
      StorePack(reinterpret_cast<__nv_bfloat16*>(Queries() + row * KeyStride(scratch)) + column,
                pack);
    }
  }

  __device__ void LoadKeys(int stage, std::int64_t first_key, int head) const {
    const int nope = static_cast<int>(p.w_uk.heads);
    const int value = static_cast<int>(p.w_uv.heads);
    const auto* keys = static_cast<const __nv_bfloat16*>(scratch.expanded_keys);
    const auto* values = static_cast<const __nv_bfloat16*>(scratch.expanded_values);
    const auto* ropes = static_cast<const __nv_bfloat16*>(scratch.ropes);
    const int key_packs = scratch.key_width / 8;
    constexpr int kRopePacks = kLatentRopeValues / 8;
    constexpr int kValuePacks = kValues / 8;
    const int packs = key_packs + kRopePacks + kValuePacks;
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * packs; i += kThreads) {
      const int key = i / packs;
      int pack = i % packs;
      const std::int64_t row = (first_key + key) * scratch.heads + head;
      std::uint8_t* to = Keys(stage) + key * KeyStride(scratch) + pack * 16;
      if (pack < key_packs) {
        const int left = max(0, min(8, nope - pack * 8));
        ptx::CopyAsync16(to, keys + row * scratch.key_width + pack * 8, left * 2);
      } else if (pack < key_packs + kRopePacks) {
        ptx::CopyAsync16(to, ropes + (first_key + key) * kLatentRopeValues + (pack - key_packs) * 8,
                         16);
      } else {
        pack -= key_packs + kRopePacks;
        const int left = max(0, min(8, value - pack * 8));
        ptx::CopyAsync16(Values(stage) + key * kValueStride + pack * 16,
                         left == 0 ? values : values + row * scratch.value_width + pack * 8,
                         left * 2);
      }
    }
  }

  // Rows [first, first + 128) of a run with head `head` of the op, `local_head` of scratch.
  __device__ void Attend(const AttentionRun& run, int first, int head, int local_head) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
    const int key_stride = KeyStride(scratch);
    const auto scale = static_cast<float>(p.softmax_scale * 1.44269504088896340736);  // powers of 2
    __syncthreads();
    LoadQueries(run, first, head);
    int visible[2];  // of rows g and g + 8 of the warp
    const std::uint64_t* masks[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first + warp * 16 + lane / 4 + half * 8;
      const bool exists = row < run.rows;
      visible[half] = exists ? p.rows.positions.data[run.first_row + row] + 1 : 0;
      masks[half] = p.selection.mask.data == nullptr || !exists
                        ? nullptr
                        : p.selection.mask.Row(run.first_row + row);
    }
    const int warp_visible = static_cast<int>(
        __reduce_max_sync(kAllLanes, static_cast<unsigned>(max(visible[0], visible[1]))));
    __shared__ int block_visible;
    if (threadIdx.x == 0) {
      block_visible = 0;
    }
    __syncthreads();
    if (lane == 0) {
      atomicMax(&block_visible, warp_visible);
    }
    __syncthreads();
    const int keys = block_visible;

    float outputs[kValueTiles][4] = {};
    float maxima[2] = {-INFINITY, -INFINITY};
    float sums[2] = {};
    LoadKeys(0, run.first_key, local_head);
    ptx::CommitCopies();
    for (int key = 0, stage = 0; key < keys; key += kKeys, stage ^= 1) {
      if (key + kKeys < keys) {
        LoadKeys(stage ^ 1, run.first_key + key + kKeys, local_head);
      }
      ptx::CommitCopies();
      ptx::WaitForCopies<1>();
      __syncthreads();
      if (key < warp_visible) {
        AttendTo(stage, key, scale, warp, lane, key_stride, visible, masks, maxima, sums, outputs);
      }
      __syncthreads();
    }
    ptx::WaitForCopies<0>();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] += __shfl_xor_sync(kAllLanes, sums[half], 1);
      sums[half] += __shfl_xor_sync(kAllLanes, sums[half], 2);
      const int row = first + warp * 16 + lane / 4 + half * 8;
      if (row >= run.rows) {
        continue;
      }
      auto* target = static_cast<__nv_bfloat16*>(p.o.data) +
                     (run.first_row + row) * p.o.row_stride + head * p.o.head_stride;
#pragma unroll
      for (int t = 0; t < kValueTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int column = t * 8 + lane % 4 * 2 + i;
          if (column < p.o.cols) {
            target[column] = __float2bfloat16_rn(
                sums[half] == 0.0F ? 0.0F : outputs[t][half * 2 + i] / sums[half]);
          }
        }
      }
    }
  }

  __device__ void AttendTo(int stage, int key, float scale, int warp, int lane, int key_stride,
                           const int (&visible)[2], const std::uint64_t* const (&masks)[2],
                           float (&maxima)[2], float (&sums)[2],
                           float (&outputs)[kValueTiles][4]) const {
    // Scores.
    float scores[kKeyTiles][4] = {};
    const std::uint8_t* q = Queries() + (warp * 16 + lane % 16) * key_stride + lane / 16 * 16;
    const std::uint8_t* k =
        Keys(stage) + (lane / 16 * 8 + lane % 8) * key_stride + lane / 8 % 2 * 16;
    const int width = scratch.key_width + kLatentRopeValues;
    for (int i = 0; i < width; i += 16) {
      unsigned a[4];
      ptx::LoadMatrices(a, q + i * 2);
#pragma unroll
      for (int t = 0; t < kKeyTiles; t += 2) {
        unsigned b[4];
        ptx::LoadMatrices(b, k + t * 8 * key_stride + i * 2);
        ptx::MmaBf16(scores[t], a, b[0], b[1]);
        ptx::MmaBf16(scores[t + 1], a, b[2], b[3]);
      }
    }

    // Mask.
    float factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint64_t bits = ~0ULL;
      if (masks[half] != nullptr) {
        bits = key < visible[half] ? masks[half][key / kMaskBits] : 0;
      }
      float largest = maxima[half];
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int own = t * 8 + lane % 4 * 2 + i;
          float& score = scores[t][half * 2 + i];
          const bool attends = key + own < visible[half] && (bits >> own & 1U) != 0;
          score = attends ? score * scale : -INFINITY;
          largest = fmaxf(largest, score);
        }
      }
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      // No key yet: nothing to rescale, and every power below is 0.
      factors[half] = largest == -INFINITY ? 1.0F : exp2f(maxima[half] - largest);
      maxima[half] = largest;
      sums[half] *= factors[half];
    }

    // Probabilities, in the places in which the next product wants them.
    unsigned probabilities[kKeyTiles][2];
#pragma unroll
    for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float shift = maxima[half] == -INFINITY ? 0.0F : maxima[half];
        const float low = exp2f(scores[t][half * 2] - shift);
        const float high = exp2f(scores[t][half * 2 + 1] - shift);
        sums[half] += low + high;
        probabilities[t][half] = Bf16PairOf(low, high);
      }
    }

    // Values.
#pragma unroll
    for (int t = 0; t < kValueTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        outputs[t][i] *= factors[i / 2];
      }
    }
    const std::uint8_t* v = Values(stage) + lane % 16 * kValueStride + lane / 16 * 16;
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      const unsigned a[4] = {probabilities[2 * step][0], probabilities[2 * step][1],
                             probabilities[2 * step + 1][0], probabilities[2 * step + 1][1]};
#pragma unroll
      for (int t = 0; t < kValueTiles; t += 2) {
        unsigned b[4];
        ptx::LoadMatricesTransposed(b, v + step * 16 * kValueStride + t * 16);
        ptx::MmaBf16(outputs[t], a, b[0], b[1]);
        ptx::MmaBf16(outputs[t + 1], a, b[2], b[3]);
      }
    }
  }

  // Keys and values of `heads` heads from `first_head` on, for the whole window.
  __device__ void Expand(const AttentionWindow& window, int first_head, int heads) const {
    using Product = RowProduct<__nv_bfloat16, kKeys>;
    const auto rows_of = [](std::int64_t rows) {
      return static_cast<int>((rows + Product::kWeightRows - 1) / Product::kWeightRows);
    };
    const int key_tiles = rows_of(p.w_uk.heads);
    const int head_tiles = key_tiles + rows_of(p.w_uv.heads);
    const int items = window.keys / kKeys * heads * head_tiles;
    for (int item = static_cast<int>(blockIdx.x); item < items;
         item += static_cast<int>(gridDim.x)) {
      const int first_key = item / (heads * head_tiles) * kKeys;
      const int local_head = item / head_tiles % heads;
      const int tile = item % head_tiles;
      const bool is_key = tile < key_tiles;
      const ConstAnyTensor3& weight = is_key ? p.w_uk : p.w_uv;
      const std::int64_t first_row = (is_key ? tile : tile - key_tiles) * Product::kWeightRows;
      const std::int64_t width = is_key ? scratch.key_width : scratch.value_width;
      auto* output =
          static_cast<__nv_bfloat16*>(is_key ? scratch.expanded_keys : scratch.expanded_values) +
          (std::int64_t{first_key} * scratch.heads + local_head) * width + first_row;
      Product::Run(
          shared,
          {.weight =
               static_cast<const std::uint8_t*>(weight.data) +
               ((first_head + local_head) * weight.row_stride + first_row * weight.head_stride) * 2,
           .weight_stride = weight.head_stride * 2,
           .weight_rows =
               static_cast<int>(min(weight.heads - first_row, std::int64_t{Product::kWeightRows})),
           .weight_scales = nullptr,
           .x = static_cast<const std::uint8_t*>(scratch.latents) +
                std::int64_t{first_key} * kLatentValues * 2,
           .x_stride = kLatentValues * 2,
           .x_rows = nullptr,
           .tokens = kKeys,
           .x_scales = nullptr,
           .x_scale_stride = 0,
           .row_bytes = kLatentValues * 2,
           .is_aligned = reinterpret_cast<std::uintptr_t>(weight.data) % 16 == 0 &&
                         weight.row_stride % 8 == 0 && weight.head_stride % 8 == 0},
          [&](int key, int row, float value) {
            output[key * scratch.heads * width + row] = __float2bfloat16_rn(value);
          });
    }
  }

  // The window's rows with these heads; long rows first.
  __device__ void AttendAll(const AttentionWindow& window, int first_head, int heads) const {
    const int items = window.tiles * heads;
    for (int item = static_cast<int>(blockIdx.x); item < items;
         item += static_cast<int>(gridDim.x)) {
      const int tile = window.tiles - 1 - item / heads;
      const AttentionRun& run = RunOfTile(scratch, window, tile);
      Attend(run, (tile - run.first_tile) * kRows, first_head + item % heads, item % heads);
    }
  }
};

}  // namespace dsa::cuda
