// MaskedAttention in float32 without tensor cores, for float32 activations or a float32 cache.
//
//   keys, values   plain_product.cuh over the window's latents
//   attention      a block per row and head, 256 keys at a time: a thread per key for the scores,
//                  a thread per value for the outputs
#pragma once

#include "kernels/cuda/masked_attention_runs.cuh"
#include "kernels/cuda/plain_product.cuh"

namespace dsa::cuda {

// `T` is the activation type, `W` that of the weights.  Latents and RoPE keys are float32.
template <typename T, typename W>
struct PlainMasked {
  static constexpr int kThreads = 256;
  static constexpr int kWidthMax = 512;  // of N + 64, and of V

  struct Shared {
    typename PlainProduct<float, W>::Shared product;
    float query[kWidthMax];
    float probabilities[kThreads];
    float warp_values[kThreads / kWarpSize];
  };

  const MaskedAttentionParams& p;
  const MaskedScratch& scratch;
  Shared& shared;

  __device__ void Expand(const AttentionWindow& window, int first_head, int heads) const {
    using Product = PlainProduct<float, W>;
    const auto rows_of = [](std::int64_t rows) {
      return static_cast<int>((rows + Product::kWeightRows - 1) / Product::kWeightRows);
    };
    const int key_tiles = rows_of(p.w_uk.heads);
    const int head_tiles = key_tiles + rows_of(p.w_uv.heads);
    const int items = window.keys / Product::kTokens * heads * head_tiles;
    for (int item = static_cast<int>(blockIdx.x); item < items;
         item += static_cast<int>(gridDim.x)) {
      const int first_key = item / (heads * head_tiles) * Product::kTokens;
      const int local_head = item / head_tiles % heads;
      const int tile = item % head_tiles;
      const bool is_key = tile < key_tiles;
      const ConstAnyTensor3& weight = is_key ? p.w_uk : p.w_uv;
      const std::int64_t first_row = (is_key ? tile : tile - key_tiles) * Product::kWeightRows;
      const std::int64_t width = is_key ? scratch.key_width : scratch.value_width;
      T* output = static_cast<T*>(is_key ? scratch.expanded_keys : scratch.expanded_values) +
                  (std::int64_t{first_key} * scratch.heads + local_head) * width + first_row;
      Product::Run(
          shared.product,
          {.weight = static_cast<const W*>(weight.data) +
                     (first_head + local_head) * weight.row_stride + first_row * weight.head_stride,
           .weight_stride = weight.head_stride,
           .weight_column_stride = 1,
           .weight_rows =
               static_cast<int>(min(weight.heads - first_row, std::int64_t{Product::kWeightRows})),
           .x =
               static_cast<const float*>(scratch.latents) + std::int64_t{first_key} * kLatentValues,
           .x_stride = kLatentValues,
           .x_rows = nullptr,
           .tokens = Product::kTokens,
           .columns = kLatentValues},
          [&](int key, int row, float value) {
            output[key * scratch.heads * width + row] = FromFloat<T>(value);
          });
    }
  }

  // Combined over the block, the same in every thread.
  template <typename Operation>
  __device__ float Combine(float value, const Operation& combine) const {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      value = combine(value, __shfl_xor_sync(kAllLanes, value, offset));
    }
    if (threadIdx.x % kWarpSize == 0) {
      shared.warp_values[threadIdx.x / kWarpSize] = value;
    }
    __syncthreads();
    value = shared.warp_values[0];
    for (int warp = 1; warp < kThreads / kWarpSize; ++warp) {
      value = combine(value, shared.warp_values[warp]);
    }
    __syncthreads();
    return value;
  }

  __device__ float Score(const AttentionRun& run, int key, int local_head) const {
    const int nope = static_cast<int>(p.w_uk.heads);
    const T* own =
        static_cast<const T*>(scratch.expanded_keys) +
        (std::int64_t{run.first_key + key} * scratch.heads + local_head) * scratch.key_width;
    const float* rope = static_cast<const float*>(scratch.ropes) +
                        std::int64_t{run.first_key + key} * kLatentRopeValues;
    float total = 0.0F;
    for (int first = 0; first < nope; first += 32) {
      float sum = 0.0F;
      for (int i = first; i < min(nope, first + 32); ++i) {
        sum = fmaf(shared.query[i], ToFloat(own[i]), sum);
      }
      total += sum;
    }
    for (int first = 0; first < kLatentRopeValues; first += 32) {
      float sum = 0.0F;
      for (int i = first; i < first + 32; ++i) {
        sum = fmaf(shared.query[nope + i], rope[i], sum);
      }
      total += sum;
    }
    return total * static_cast<float>(p.softmax_scale);
  }

  __device__ void Attend(const AttentionRun& run, int row, int head, int local_head) const {
    const int thread = static_cast<int>(threadIdx.x);
    const int visible = p.rows.positions.data[row] + 1;
    const std::uint64_t* mask =
        p.selection.mask.data == nullptr ? nullptr : p.selection.mask.Row(row);
    const T* q = static_cast<const T*>(p.q.data) + row * p.q.row_stride + head * p.q.head_stride;
    for (int i = thread; i < p.q.cols; i += kThreads) {
      shared.query[i] = ToFloat(q[i]);
    }
    __syncthreads();
    constexpr int kThreadValues = kWidthMax / kThreads;
    float outputs[kThreadValues] = {};
    float maximum = -INFINITY;
    float sum = 0.0F;
    for (int first = 0; first < visible; first += kThreads) {
      const int key = first + thread;
      const bool attends =
          key < visible &&
          (mask == nullptr || (mask[key / kMaskBits] >> (key % kMaskBits) & 1U) != 0);
      const float score = attends ? Score(run, key, local_head) : -INFINITY;
      const float larger =
          fmaxf(maximum, Combine(score, [](float a, float b) { return fmaxf(a, b); }));
      const float shift = larger == -INFINITY ? 0.0F : larger;
      const float factor = larger == -INFINITY ? 1.0F : expf(maximum - larger);
      const float power = expf(score - shift);
      maximum = larger;
      sum = sum * factor + Combine(power, [](float a, float b) { return a + b; });
      shared.probabilities[thread] = Rounded<T>(power);
      __syncthreads();
#pragma unroll
      for (int v = 0; v < kThreadValues; ++v) {
        const int column = thread + v * kThreads;
        if (column < p.o.cols) {
          const T* value = static_cast<const T*>(scratch.expanded_values) +
                           (std::int64_t{run.first_key + first} * scratch.heads + local_head) *
                               scratch.value_width +
                           column;
          const int keys = min(kThreads, visible - first);
          float added = 0.0F;
          for (int j = 0; j < keys; j += 32) {
            float part = 0.0F;
            for (int i = j; i < min(keys, j + 32); ++i) {
              if (shared.probabilities[i] != 0.0F) {  // a key that is not attended to may be NaN
                part = fmaf(shared.probabilities[i],
                            ToFloat(value[std::int64_t{i} * scratch.heads * scratch.value_width]),
                            part);
              }
            }
            added += part;
          }
          outputs[v] = outputs[v] * factor + added;
        }
      }
      __syncthreads();
    }
    T* target = static_cast<T*>(p.o.data) + row * p.o.row_stride + head * p.o.head_stride;
#pragma unroll
    for (int v = 0; v < kThreadValues; ++v) {
      const int column = thread + v * kThreads;
      if (column < p.o.cols) {
        target[column] = FromFloat<T>(sum == 0.0F ? 0.0F : outputs[v] / sum);
      }
    }
    __syncthreads();
  }

  __device__ void AttendAll(const AttentionWindow& window, int first_head, int heads) const {
    const AttentionRun& first = scratch.runs[window.first_run];
    const AttentionRun& last = scratch.runs[window.first_run + window.runs - 1];
    const int rows = last.first_row + last.rows - first.first_row;
    for (int item = static_cast<int>(blockIdx.x); item < rows * heads;
         item += static_cast<int>(gridDim.x)) {
      const int row = first.first_row + item / heads;
      int run = window.first_run;
      while (scratch.runs[run].first_row + scratch.runs[run].rows <= row) {
        ++run;
      }
      Attend(scratch.runs[run], row, first_head + item % heads, item % heads);
    }
  }
};

}  // namespace dsa::cuda
