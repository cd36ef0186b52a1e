// LatentAttention of bfloat16 queries on the tensor cores: a block of 8 warps attends with 16, 32
// or 64 heads of a row to a range of its keys, 64 at a time.
//
//   raw   [64, 656]  records of the next 64 keys, on their way while these are multiplied (fp8)
//   K     [64, 576]  bfloat16, exact: e4m3 times a power of two; keys of scores, values of outputs
//   S     Q K^T      warp (m, c): heads 16 m .., keys of column group c
//   P     exp2(S - maximum) in bfloat16, through shared memory
//   O     P K        warp (m, c): heads 16 m .., latent values of column group c
//
// The maximum is a running one.  Rows of every tile are padded by 16 bytes, so that the eight rows
// of a matrix meet all banks.  Bound by shared memory, which is read about 600 KB a turn of 64
// heads.
#include "kernels/cuda/attention_keys.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/mma.cuh"

namespace dsa::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kRecordStride = kRecordValues * 2 + 16;  // bytes
constexpr int kPStride = kKeyBlock * 2 + 16;
constexpr int kChunk = 16;                                     // bytes of a copy
constexpr int kRawChunks = LatentBlock::kTokenBytes / kChunk;  // of a record
constexpr float kLog2E = 1.44269504088896340736F;

// kHeadTiles tiles of 16 heads; the warps of a tile share its columns.
template <int kHeadTiles, KvFormat kFormat>
struct Block {
  static constexpr int kHeads = kHeadTiles * 16;
  static constexpr int kColumnGroups = kWarps / kHeadTiles;
  static constexpr int kKeyTiles = kKeyBlock / kColumnGroups / 8;         // of a warp, in S
  static constexpr int kOutputTiles = kLatentValues / kColumnGroups / 8;  // of a warp, in O

  struct Shared {
    std::uint8_t q[kHeads * kRecordStride];
    std::uint8_t k[kKeyBlock * kRecordStride];
    std::uint8_t p[kHeads * kPStride];
    std::uint8_t raw[kFormat == KvFormat::kFp8 ? kKeyBlock * LatentBlock::kTokenBytes : 16];
    float maxima[kHeads][kColumnGroups];
    float sums[kHeads][kColumnGroups];
    std::int64_t slots[2][kKeyBlock];  // -1: no key
  };

  __device__ static void LoadQueries(Shared& shared, const LatentAttentionParams& p,
                                     std::int64_t row, int first_head) {
    constexpr int kPacks = kRecordValues / 8;
    const auto* latent = static_cast<const __nv_bfloat16*>(p.q_latent.data);
    const auto* rope = static_cast<const __nv_bfloat16*>(p.q_rope.data);
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * kPacks; i += kThreads) {
      const int head = first_head + i / kPacks;
      const int value = i % kPacks * 8;
      Pack<__nv_bfloat16, 8> pack = {};
      if (head < p.q_latent.heads) {
        pack = value < kLatentValues
                   ? LoadPack<8>(latent + row * p.q_latent.row_stride +
                                 head * p.q_latent.head_stride + value)
                   : LoadPack<8>(rope + row * p.q_rope.row_stride + head * p.q_rope.head_stride +
                                 value - kLatentValues);
      }
      StorePack(reinterpret_cast<__nv_bfloat16*>(shared.q + i / kPacks * kRecordStride) + value,
                pack);
    }
  }

  // The slots of a turn's keys, by the first 64 threads.
  __device__ static void FindSlots(std::int64_t* slots, const RowKeys& keys, int first, int last) {
    const int key = first + static_cast<int>(threadIdx.x);
    if (threadIdx.x < kKeyBlock) {
      slots[threadIdx.x] = key < last ? keys.Slot(key) : -1;
    }
  }

  __device__ static void CopyRaw(Shared& shared, const std::uint8_t* cache,
                                 const std::int64_t* slots) {
    for (int i = static_cast<int>(threadIdx.x); i < kKeyBlock * kRawChunks; i += kThreads) {
      const std::int64_t slot = slots[i / kRawChunks];
      ptx::CopyAsync16(
          shared.raw + i * kChunk,
          cache + max(slot, std::int64_t{0}) * LatentBlock::kTokenBytes + i % kRawChunks * kChunk,
          slot < 0 ? 0 : kChunk);
    }
  }

  // Records to bfloat16.  A key that does not exist is 0.
  __device__ static void ConvertRaw(Shared& shared) {
    constexpr int kValueChunks = kLatentValues / kChunk;
    constexpr int kChunks = kValueChunks + kLatentRopeValues * 2 / kChunk;
    for (int i = static_cast<int>(threadIdx.x); i < kKeyBlock * kChunks; i += kThreads) {
      const int key = i / kChunks;
      const int chunk = i % kChunks;
      const std::uint8_t* record = shared.raw + key * LatentBlock::kTokenBytes;
      std::uint8_t* target = shared.k + key * kRecordStride;
      if (chunk >= kValueChunks) {
        const int offset = (chunk - kValueChunks) * kChunk;
        *reinterpret_cast<uint4*>(target + kLatentValues * 2 + offset) =
            *reinterpret_cast<const uint4*>(record + LatentBlock::Rope(0) + offset);
        continue;
      }
      const auto codes =
          *reinterpret_cast<const Pack<std::uint8_t, kChunk>*>(record + chunk * kChunk);
      const float scale = reinterpret_cast<const float*>(
          record + LatentBlock::Scales(0))[chunk * kChunk / kValuesPerScale];
      Pack<__nv_bfloat162, 8> values;
#pragma unroll
      for (int j = 0; j < kChunk / 2; ++j) {
        const auto pair =
            static_cast<__nv_fp8x2_storage_t>(codes.values[2 * j] | codes.values[2 * j + 1] << 8);
        const float2 floats = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
        values.values[j] = __floats2bfloat162_rn(floats.x * scale, floats.y * scale);
      }
      StorePack(reinterpret_cast<__nv_bfloat162*>(target + chunk * kChunk * 2), values);
    }
  }

  __device__ static void LoadPlain(Shared& shared, const std::uint8_t* cache,
                                   const std::int64_t* slots) {
    constexpr int kChunks = kRecordValues * 2 / kChunk;
    for (int i = static_cast<int>(threadIdx.x); i < kKeyBlock * kChunks; i += kThreads) {
      const std::int64_t slot = slots[i / kChunks];
      ptx::CopyAsync16(shared.k + i / kChunks * kRecordStride + i % kChunks * kChunk,
                       cache + max(slot, std::int64_t{0}) * LatentTokenBytes(KvFormat::kBf16) +
                           i % kChunks * kChunk,
                       slot < 0 ? 0 : kChunk);
    }
    ptx::CommitCopies();
    ptx::WaitForCopies<0>();
  }

  __device__ static void Scores(const Shared& shared, int head, int key, int lane,
                                float (&scores)[kKeyTiles][4]) {
    const std::uint8_t* q = shared.q + (head + lane % 16) * kRecordStride + lane / 16 * 16;
    if constexpr (kKeyTiles == 1) {
      const std::uint8_t* k = shared.k + (key + lane % 8) * kRecordStride + lane / 8 * 16;
#pragma unroll 6
      for (int i = 0; i < kRecordValues; i += 32) {
        unsigned a[4];
        unsigned b[4];
        ptx::LoadMatrices(b, k + i * 2);
        ptx::LoadMatrices(a, q + i * 2);
        ptx::MmaBf16(scores[0], a, b[0], b[1]);
        ptx::LoadMatrices(a, q + i * 2 + 32);
        ptx::MmaBf16(scores[0], a, b[2], b[3]);
      }
    } else {
      const std::uint8_t* k =
          shared.k + (key + lane / 16 * 8 + lane % 8) * kRecordStride + lane / 8 % 2 * 16;
#pragma unroll 4
      for (int i = 0; i < kRecordValues; i += 16) {
        unsigned a[4];
        ptx::LoadMatrices(a, q + i * 2);
#pragma unroll
        for (int t = 0; t < kKeyTiles; t += 2) {
          unsigned b[4];
          ptx::LoadMatrices(b, k + t * 8 * kRecordStride + i * 2);
          ptx::MmaBf16(scores[t], a, b[0], b[1]);
          ptx::MmaBf16(scores[t + 1], a, b[2], b[3]);
        }
      }
    }
  }

  __device__ static void AddValues(const Shared& shared, int head, int column, int lane,
                                   float (&outputs)[kOutputTiles][4]) {
    const std::uint8_t* p = shared.p + (head + lane % 16) * kPStride + lane / 16 * 16;
    const std::uint8_t* v = shared.k + lane % 16 * kRecordStride + column * 2 + lane / 16 * 16;
#pragma unroll
    for (int key = 0; key < kKeyBlock; key += 16) {
      unsigned a[4];
      ptx::LoadMatrices(a, p + key * 2);
#pragma unroll
      for (int t = 0; t < kOutputTiles; t += 2) {
        unsigned b[4];
        ptx::LoadMatricesTransposed(b, v + key * kRecordStride + t * 16);
        ptx::MmaBf16(outputs[t], a, b[0], b[1]);
        ptx::MmaBf16(outputs[t + 1], a, b[2], b[3]);
      }
    }
  }
};

template <int kHeadTiles, KvFormat kFormat>
__global__ __launch_bounds__(kThreads, 1) void TensorAttentionKernel(
    const __grid_constant__ LatentAttentionParams p, AttentionParts parts, int groups) {
  using B = Block<kHeadTiles, kFormat>;
  extern __shared__ __align__(16) std::uint8_t memory[];
  auto& shared = *reinterpret_cast<typename B::Shared*>(memory);
  const std::int64_t row = blockIdx.y;
  const int group = static_cast<int>(blockIdx.x) % groups;
  const int split = static_cast<int>(blockIdx.x) / groups;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int head = warp % kHeadTiles * 16;  // in the block
  const int column_group = warp / kHeadTiles;
  const int first_head = group * B::kHeads;
  const int heads = static_cast<int>(p.q_latent.heads);

  const RowKeys keys = KeysOf(p.rows, p.selection, row);
  const int key_blocks = (keys.count + kKeyBlock - 1) / kKeyBlock;
  const int split_keys = (key_blocks + parts.splits - 1) / parts.splits * kKeyBlock;
  const int first = split * split_keys;
  const int last = min(keys.count, first + split_keys);

  B::LoadQueries(shared, p, row, first_head);
  if (first < last) {
    B::FindSlots(shared.slots[0], keys, first, last);
    B::FindSlots(shared.slots[1], keys, first + kKeyBlock, last);
    __syncthreads();
    if constexpr (kFormat == KvFormat::kFp8) {
      B::CopyRaw(shared, p.cache.data, shared.slots[0]);
    }
  }
  const float scale = static_cast<float>(p.softmax_scale * static_cast<double>(kLog2E));
  float outputs[B::kOutputTiles][4] = {};
  float maxima[2] = {-INFINITY, -INFINITY};  // of heads g and g + 8, in units of log2
  float sums[2] = {};                        // of the warp's keys
  int turn = 0;
  for (int key = first; key < last; key += kKeyBlock, ++turn) {
    // Keys.
    if constexpr (kFormat == KvFormat::kFp8) {
      ptx::CommitCopies();
      ptx::WaitForCopies<0>();
      __syncthreads();
      B::ConvertRaw(shared);
      __syncthreads();
      B::CopyRaw(shared, p.cache.data, shared.slots[(turn + 1) % 2]);
    } else {
      __syncthreads();
      B::LoadPlain(shared, p.cache.data, shared.slots[turn % 2]);
      __syncthreads();
    }
    B::FindSlots(shared.slots[turn % 2], keys, key + 2 * kKeyBlock, last);

    // Scores.
    float scores[B::kKeyTiles][4] = {};
    const int own_key = column_group * B::kKeyTiles * 8;
    B::Scores(shared, head, own_key, lane, scores);
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int t = 0; t < B::kKeyTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool exists = key + own_key + t * 8 + lane % 4 * 2 + i % 2 < last;
        scores[t][i] = exists ? scores[t][i] * scale : -INFINITY;
        largest[i / 2] = fmaxf(largest[i / 2], scores[t][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(kAllLanes, largest[half], 1));
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(kAllLanes, largest[half], 2));
      if (lane % 4 == 0) {
        shared.maxima[head + lane / 4 + half * 8][column_group] = largest[half];
      }
    }
    __syncthreads();

    // Probabilities.
    float factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = maxima[half];
#pragma unroll
      for (int c = 0; c < B::kColumnGroups; ++c) {
        maximum = fmaxf(maximum, shared.maxima[head + lane / 4 + half * 8][c]);
      }
      factors[half] = exp2f(maxima[half] - maximum);
      maxima[half] = maximum;
      sums[half] *= factors[half];
    }
#pragma unroll
    for (int t = 0; t < B::kKeyTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float low = exp2f(scores[t][half * 2] - maxima[half]);
        const float high = exp2f(scores[t][half * 2 + 1] - maxima[half]);
        sums[half] += low + high;
        *reinterpret_cast<__nv_bfloat162*>(shared.p + (head + lane / 4 + half * 8) * kPStride +
                                           (own_key + t * 8 + lane % 4 * 2) * 2) =
            __floats2bfloat162_rn(low, high);
      }
    }
    __syncthreads();

    // Values.
    if (__any_sync(kAllLanes, factors[0] != 1.0F || factors[1] != 1.0F)) {
#pragma unroll
      for (int t = 0; t < B::kOutputTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          outputs[t][i] *= factors[i / 2];
        }
      }
    }
    B::AddValues(shared, head, column_group * B::kOutputTiles * 8, lane, outputs);
  }

  // The sum over the warps of a tile of heads.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sums[half] += __shfl_xor_sync(kAllLanes, sums[half], 1);
    sums[half] += __shfl_xor_sync(kAllLanes, sums[half], 2);
    if (lane % 4 == 0) {
      shared.sums[head + lane / 4 + half * 8][column_group] = sums[half];
    }
  }
  ptx::WaitForCopies<0>();
  __syncthreads();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int own_head = first_head + head + lane / 4 + half * 8;
    if (own_head >= heads) {
      continue;
    }
    float sum = 0.0F;
#pragma unroll
    for (int c = 0; c < B::kColumnGroups; ++c) {
      sum += shared.sums[head + lane / 4 + half * 8][c];
    }
    const int column = column_group * B::kOutputTiles * 8 + lane % 4 * 2;
    if (parts.splits > 1) {
      const std::int64_t part = (row * parts.splits + split) * heads + own_head;
      if (column_group == 0 && lane % 4 == 0) {
        parts.maxima[part] = {maxima[half], sum};
      }
      for (int t = 0; first < last && t < B::kOutputTiles; ++t) {
        *reinterpret_cast<float2*>(parts.outputs + part * kLatentValues + column + t * 8) = {
            outputs[t][half * 2], outputs[t][half * 2 + 1]};
      }
      continue;
    }
    auto* target = static_cast<__nv_bfloat16*>(p.o_latent.data) + row * p.o_latent.row_stride +
                   own_head * p.o_latent.head_stride + column;
#pragma unroll
    for (int t = 0; t < B::kOutputTiles; ++t) {
      const bool has_keys = first < last;
      target[t * 8] = __float2bfloat16_rn(has_keys ? outputs[t][half * 2] / sum : 0.0F);
      target[t * 8 + 1] = __float2bfloat16_rn(has_keys ? outputs[t][half * 2 + 1] / sum : 0.0F);
    }
  }
}

int HeadTiles(std::int64_t heads) {
  return heads <= 16 ? 1 : heads <= 32 ? 2 : 4;
}

template <int kHeadTiles, KvFormat kFormat>
void Launch(const LatentAttentionParams& params, const AttentionParts& parts, cudaStream_t stream) {
  using B = Block<kHeadTiles, kFormat>;
  const auto kernel = TensorAttentionKernel<kHeadTiles, kFormat>;
  constexpr int kBytes = static_cast<int>(sizeof(typename B::Shared));
  static_assert(kBytes <= 227 * 1024, "a block may have no more on sm_90");
  DSA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  const int groups = TensorAttentionGroups(params.q_latent.heads);
  const dim3 grid(static_cast<unsigned>(groups * parts.splits),
                  static_cast<unsigned>(params.q_latent.rows));
  kernel<<<grid, kThreads, kBytes, stream>>>(params, parts, groups);
  DSA_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

int TensorAttentionGroups(std::int64_t heads) {
  const int group = HeadTiles(heads) * 16;
  return static_cast<int>((heads + group - 1) / group);
}

void RunTensorAttention(const LatentAttentionParams& params, const AttentionParts& parts,
                        cudaStream_t stream) {
  const auto launch = [&]<int kHeadTiles>() {
    params.cache.format == KvFormat::kFp8
        ? Launch<kHeadTiles, KvFormat::kFp8>(params, parts, stream)
        : Launch<kHeadTiles, KvFormat::kBf16>(params, parts, stream);
  };
  switch (HeadTiles(params.q_latent.heads)) {
    case 1: launch.operator()<1>(); return;
    case 2: launch.operator()<2>(); return;
    default: launch.operator()<4>(); return;
  }
}

}  // namespace dsa::cuda
