// LatentAttention of many rows of few sequences, bfloat16 queries over the fp8 cache: as
// latent_attention_many_heads.cu, bit for bit, with keys that were converted beforehand
// (latent_rows.h), so that they go from the L2 cache to the tiles of the tensor cores by
// asynchronous copies alone.
//
//   warpgroup 0     S = Q K^T, 64 heads by 64 keys; P = 2^(S - reference) in half
//   warpgroups 1, 2 O += P V, 256 latent values each
//   warpgroup 3     brings keys
//
// A block is resident: it goes through items, 64 heads of a row each, and its warpgroups meet
// through barriers alone.  So keys of the next item arrive while the last one's outputs are
// written.
//
// What waits for what is the room for keys, so it is given back early: a turn's 64 keys are two
// parts of four tiles, values [0, 256) and [256, 512), and a RoPE tile.  Parts and RoPE tiles have
// rings of their own; five parts are two and a half turns.  Q lies in registers for values
// [0, 256), in shared memory for the others.  P takes the place of its own keys' RoPE tile.
//
// Rows of a sequence that was not converted come from records and are converted on the way.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/latent_chunk.cuh"
#include "kernels/cuda/latent_chunk_keys.cuh"
#include "kernels/cuda/per_device.h"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/wgmma_half.cuh"

#include <algorithm>

namespace dsa::cuda {
namespace chunk {
namespace {

enum NamedBarrier { kQueriesStored = 1, kScored };

// Scores of heads 16 w + g and + 8 of warp w, lane 4 g + q: score 4 j + 2 h + i is of head g + 8 h
// and key 8 j + 2 q + i.
class Scorer final {
 public:
  __device__ Scorer(const Items& items, const Plan& plan)
      : items_(items),
        plan_(plan),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        row_(static_cast<int>(threadIdx.x) / kWarpSize % kGroupWarps * 16 + lane_ / 4),
        scale_(static_cast<float>(items.p.softmax_scale * static_cast<double>(kLog2E))) {}

  __device__ void Run() {
    int item = Items::First();
    int keys = items_.Keys(item);
    LoadQueries(item);
    StoreSharedQueries(item);
#pragma unroll 1
    for (; item < items_.count; item = Items::Next(item)) {
      const int next = Items::Next(item);
      const int next_keys = items_.Keys(next);
      Start();
      float scores[kScores];
      const int turns = TurnsOf(keys);
#pragma unroll 1
      for (int turn = 0; turn < turns; ++turn) {
        Multiply(scores);
        if (turn + 1 == turns) {  // on their way while powers are made
          LoadQueries(next);
        }
        Publish(scores, keys - turn * kKeyBlock);
      }
      Finish();
      if (turns == 0) {
        LoadQueries(next);
      }
      StoreSharedQueries(next);
      keys = next_keys;
    }
  }

 private:
  __device__ void Start() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      references_[half] = kNoReference;
      sums_[half] = 0.0F;
    }
#pragma unroll
    for (int step = 0; step < kRegisterSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        queries_[step][i] = HalvesOfBf16(queries_[step][i]);
      }
    }
  }

  // Q of values [0, 256) to registers, not yet converted.
  __device__ void LoadQueries(int item) {
    if (item >= items_.count) {
      return;
    }
    const LatentAttentionParams& p = items_.p;
    const int heads = items_.Heads(item);
    const auto* row = static_cast<const __nv_bfloat16*>(p.q_latent.data) +
                      items_.Row(item) * p.q_latent.row_stride +
                      (items_.FirstHead(item) + row_) * p.q_latent.head_stride + lane_ % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool exists = row_ + half * 8 < heads;
      const __nv_bfloat16* from = row + half * 8 * p.q_latent.head_stride;
#pragma unroll
      for (int step = 0; step < kRegisterSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          queries_[step][2 * i + half] =
              exists ? *reinterpret_cast<const unsigned*>(from + step * 16 + i * 8) : 0U;
        }
      }
    }
  }

  // Q of the other values, once all warps have read the last item's.
  __device__ void StoreSharedQueries(int item) {
    constexpr int kRowChunks = kSharedTiles * 8;
    constexpr int kLatentChunks = kRowChunks - 8;
    constexpr int kEach = kHeads * kRowChunks / kGroupThreads;
    constexpr int kAtOnce = 5;
    static_assert(kEach % kAtOnce == 0);
    if (item >= items_.count) {
      return;
    }
    const LatentAttentionParams& p = items_.p;
    const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
    const int heads = items_.Heads(item);
    const auto* latent = static_cast<const __nv_bfloat16*>(p.q_latent.data) +
                         items_.Row(item) * p.q_latent.row_stride +
                         items_.FirstHead(item) * p.q_latent.head_stride + kRegisterSteps * 16;
    const auto* rope = static_cast<const __nv_bfloat16*>(p.q_rope.data) +
                       items_.Row(item) * p.q_rope.row_stride +
                       items_.FirstHead(item) * p.q_rope.head_stride;
#pragma unroll 1
    for (int first = 0; first < kEach; first += kAtOnce) {
      uint4 values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int head = (thread + (first + i) * kGroupThreads) / kRowChunks;
        const int chunk = (thread + (first + i) * kGroupThreads) % kRowChunks;
        values[i] = {0, 0, 0, 0};
        if (head < heads) {
          values[i] = *reinterpret_cast<const uint4*>(
              chunk < kLatentChunks
                  ? latent + head * p.q_latent.head_stride + chunk * 8
                  : rope + head * p.q_rope.head_stride + (chunk - kLatentChunks) * 8);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int head = (thread + (first + i) * kGroupThreads) / kRowChunks;
        const int chunk = (thread + (first + i) * kGroupThreads) % kRowChunks;
        ptx::StoreWords4(
            plan_.queries + chunk / 8 * kTileBytes + head * 128 + ((chunk % 8) ^ (head % 8)) * 16,
            HalvesOfBf16(values[i]));
      }
    }
    ptx::AsyncProxyFence();
    ptx::NamedBarrierSync(kQueriesStored, kGroupThreads);
  }

  __device__ void WaitForPart() const {
    ptx::BarrierWait(plan_.part_full + part_.buffer * 8, part_.phase);
    ptx::AsyncProxyFence();
  }

  __device__ void Multiply(float (&scores)[kScores]) {
    const std::uint64_t queries = ptx::SwizzledTile(plan_.queries);
    const std::uint64_t rope = ptx::SwizzledTile(plan_.Rope(rope_.buffer));
    std::uint64_t keys = ptx::SwizzledTile(plan_.Part(part_.buffer));
    WaitForPart();
    ptx::PinRegisters(scores);
    ptx::WgmmaFence();
#pragma unroll
    for (int step = 0; step < kPartSteps; ++step) {
      const unsigned(&query)[4] = queries_[step];
      ptx::WgmmaHalf<64>::Run(scores, query[0], query[1], query[2], query[3],
                              keys + (step / 4 * kTileBytes + step % 4 * 32) / 16, step > 0);
    }
    part_.Next();
    keys = ptx::SwizzledTile(plan_.Part(part_.buffer));
    WaitForPart();
    part_.Next();
#pragma unroll
    for (int step = 0; step < kSteps - kPartSteps; ++step) {
      const int within = (step / 4 * kTileBytes + step % 4 * 32) / 16;
      ptx::WgmmaHalf64(scores, queries + within,
                       step < kPartSteps ? keys + within : rope + step % 4 * 2, true);
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(scores);
    if (lane_ == 0) {
      ptx::BarrierArrive(plan_.scored + rope_.buffer * 8);
    }
  }

  // Scores to powers in shared memory; `keys` from the turn's first on.
  __device__ void Publish(float (&scores)[kScores], int keys) {
    const int buffer = rope_.buffer;
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      scores[i] *= scale_;
    }
    if (keys < kKeyBlock) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        if (i / 4 * 8 + lane_ % 4 * 2 + i % 2 >= keys) {
          scores[i] = -INFINITY;
        }
      }
    }
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], scores[i]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(kAllLanes, largest[half], 1));
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(kAllLanes, largest[half], 2));
      const float reference =
          largest[half] > references_[half] + kSlack ? largest[half] : references_[half];
      const float factor = Exp2(references_[half] - reference);
      references_[half] = reference;
      sums_[half] *= factor;
      if (lane_ % 4 == 0) {
        ptx::StoreFloat(plan_.factors + (buffer * kHeads + row_ + half * 8) * 4, factor);
      }
    }
    unsigned powers[kScores / 2];
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      const float low = Exp2(scores[i] - references_[i / 2 % 2]);
      const float high = Exp2(scores[i + 1] - references_[i / 2 % 2]);
      sums_[i / 2 % 2] += low + high;
      powers[i / 2] = HalvesOf(low, high);
    }
    // Every warp has its scores of this turn, so the RoPE tile is read no more.
    ptx::NamedBarrierSync(kScored, kGroupThreads);
    const int row = row_ - lane_ / 4 + lane_ % 16;
    const unsigned target = plan_.Rope(buffer) + row * 128;
#pragma unroll
    for (int i = 0; i < kScores / 2; i += 4) {  // 16 keys
      const int piece = (i / 2 + lane_ / 16) ^ (row % 8);
      ptx::StoreMatrices(target + piece * 16,
                         {powers[i], powers[i + 1], powers[i + 2], powers[i + 3]});
    }
    ptx::AsyncProxyFence();
    __syncwarp();
    if (lane_ == 0) {
      ptx::BarrierArrive(plan_.powers + buffer * 8);
    }
    rope_.Next();
  }

  // Leaves 1 / sum in shared memory.
  __device__ void Finish() {
    ptx::BarrierWait(plan_.sums_empty + item_.buffer * 8, item_.phase ^ 1U);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sums_[half];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (lane_ % 4 == 0) {
        ptx::StoreFloat(plan_.inverse + (item_.buffer * kHeads + row_ + half * 8) * 4,
                        sum > 0.0F ? 1.0F / sum : 0.0F);
      }
    }
    __syncwarp();
    if (lane_ == 0) {
      ptx::BarrierArrive(plan_.sums_full + item_.buffer * 8);
    }
    item_.Next();
  }

  const Items& items_;
  const Plan& plan_;
  int lane_;
  int row_;
  float scale_;
  unsigned queries_[kRegisterSteps][4];
  float references_[2];  // in units of log2
  float sums_[2];        // of the thread's keys
  PartCursor part_;
  RopeCursor rope_;
  SumCursor item_;
};

// O of 64 heads and 256 latent values: sum 4 j + 2 h + i of product k is of head 16 w + g + 8 h and
// value 128 k + 8 j + 2 q + i.
class Adder final {
 public:
  __device__ Adder(const Items& items, const Plan& plan, int group)
      : items_(items),
        plan_(plan),
        group_(group),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        row_(static_cast<int>(threadIdx.x) / kWarpSize % kGroupWarps * 16 + lane_ / 4) {
    if (group == 1) {
      part_.Next();
    }
  }

  __device__ void Run() {
    int item = Items::First();
    int keys = items_.Keys(item);
#pragma unroll 1
    for (; item < items_.count; item = Items::Next(item)) {
      const int next_keys = items_.Keys(Items::Next(item));
      Sums sums;
#pragma unroll
      for (int i = 0; i < kProducts * kSums; ++i) {
        sums[i / kSums][i % kSums] = 0.0F;
      }
      const int turns = TurnsOf(keys);
#pragma unroll 1
      for (int turn = 0; turn < turns; ++turn) {
        Add(sums, turn, turn + 1 == turns);
      }
      ptx::BarrierWait(plan_.sums_full + item_.buffer * 8, item_.phase);
      const unsigned inverse = plan_.inverse + (item_.buffer * kHeads + row_) * 4;
      const float lower = ptx::LoadShared(inverse);
      const float upper = ptx::LoadShared(inverse + 8 * 4);
      __syncwarp();
      if (lane_ == 0) {
        ptx::BarrierArrive(plan_.sums_empty + item_.buffer * 8);
      }
      item_.Next();
      Store(item, sums, lower, upper);
      keys = next_keys;
    }
  }

 private:
  __device__ void Add(Sums& sums, int turn, bool is_last) {
    const std::uint64_t powers = ptx::SwizzledTile(plan_.Rope(rope_.buffer));
    const std::uint64_t values = ptx::SwizzledColumns(plan_.Part(part_.buffer), kTileBytes);
    ptx::BarrierWait(plan_.powers + rope_.buffer * 8, rope_.phase);
    const unsigned factors = plan_.factors + (rope_.buffer * kHeads + row_) * 4;
    const float lower = ptx::LoadShared(factors);
    const float upper = ptx::LoadShared(factors + 8 * 4);
    if (__any_sync(kAllLanes, lower != 1.0F || upper != 1.0F)) {
#pragma unroll
      for (int i = 0; i < kProducts * kSums; ++i) {
        sums[i / kSums][i % kSums] *= i / 2 % 2 == 0 ? lower : upper;
      }
    }
    RopeCursor next = rope_;
    next.Next();
    if (group_ == 1) {  // whose part is needed later, and every phase is waited for
      if (turn == 0) {
        ptx::BarrierWait(plan_.scored + rope_.buffer * 8, rope_.phase);
      }
      if (!is_last) {
        ptx::BarrierWait(plan_.scored + next.buffer * 8, next.phase);
      }
    }
    ptx::PinRegisters(sums[0]);
    ptx::PinRegisters(sums[1]);
    ptx::WgmmaFence();
#pragma unroll
    for (int step = 0; step < kKeyBlock / 16; ++step) {
#pragma unroll
      for (int product = 0; product < kProducts; ++product) {
        ptx::WgmmaHalf128(sums[product], powers + step * 2,
                          values + step * 128 + product * (kProductValues / 64) * (kTileBytes / 16),
                          true);
      }
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(sums[0]);
    ptx::PinRegisters(sums[1]);
    if (lane_ == 0) {
      ptx::BarrierArrive(plan_.part_empty + part_.buffer * 8);
      ptx::BarrierArrive(plan_.rope_empty + rope_.buffer * 8);
    }
    part_.Next();
    part_.Next();
    rope_ = next;
  }

  // Lanes of a quad have pairs of the same eight values; they exchange them for whole pieces of 16
  // bytes, of four times eight values one each.
  __device__ void Store(int item, const Sums& sums, float lower, float upper) const {
    const LatentAttentionParams& p = items_.p;
    const int heads = items_.Heads(item);
    const int quad = lane_ % 4;
    auto* target =
        static_cast<__nv_bfloat16*>(p.o_latent.data) + items_.Row(item) * p.o_latent.row_stride +
        (items_.FirstHead(item) + row_) * p.o_latent.head_stride + group_ * kGroupValues + quad * 8;
#pragma unroll
    for (int product = 0; product < kProducts; ++product) {
#pragma unroll
      for (int first = 0; first < kSums / 4; first += 4) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float inverse = half == 0 ? lower : upper;
          unsigned pairs[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float* own = sums[product] + (first + j) * 4 + half * 2;
            pairs[j] = Bf16PairOf(own[0] * inverse, own[1] * inverse);
          }
          const uint4 piece = TurnedInQuad(pairs, quad);
          if (row_ + half * 8 < heads) {
            *reinterpret_cast<uint4*>(target + half * 8 * p.o_latent.head_stride +
                                      product * kProductValues + first * 8) = piece;
          }
        }
      }
    }
  }

  // Lane q of a quad gives word j to lane j, which gets it as word q.
  __device__ static uint4 TurnedInQuad(unsigned (&words)[4], int quad) {
    const bool is_odd = quad % 2 != 0;
    const bool is_upper = quad >= 2;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const unsigned other = __shfl_xor_sync(kAllLanes, is_odd ? words[j] : words[j + 1], 1);
      words[j] = is_odd ? other : words[j];
      words[j + 1] = is_odd ? words[j + 1] : other;
    }
    const unsigned first = __shfl_xor_sync(kAllLanes, is_upper ? words[0] : words[2], 2);
    const unsigned second = __shfl_xor_sync(kAllLanes, is_upper ? words[1] : words[3], 2);
    return is_upper ? make_uint4(first, second, words[2], words[3])
                    : make_uint4(words[0], words[1], first, second);
  }

  const Items& items_;
  const Plan& plan_;
  int group_;
  int lane_;
  int row_;
  PartCursor part_;
  RopeCursor rope_;
  SumCursor item_;
};

__global__ void __launch_bounds__(kThreads, 1)
    ChunkKernel(const __grid_constant__ LatentAttentionParams p,
                const __grid_constant__ LatentRows latents, int groups) {
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const Plan plan(ptx::SharedAddress(memory));
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kGroupThreads, 0);
  if (threadIdx.x == 0) {
    plan.InitBarriers();
  }
  ptx::AllowSuccessor();
  __syncthreads();
  ptx::WaitForPredecessors();
  const Items items(p, groups);
  if (group == 0) {
    ptx::RaiseRegisters<kScoreRegisters>();
    Scorer(items, plan).Run();
  } else if (group == 3) {
    ptx::LowerRegisters<kGatherRegisters>();
    Gatherer(items, plan, latents).Run();
  } else {
    ptx::RaiseRegisters<kValueRegisters>();
    Adder(items, plan, group - 1).Run();
  }
}

}  // namespace
}  // namespace chunk

void RunChunk(const LatentAttentionParams& params, const LatentRows& latents, int multiprocessors,
              cudaStream_t stream) {
  static PerDevice attribute;
  attribute.Once([] {
    return cudaFuncSetAttribute(chunk::ChunkKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                chunk::Plan::kBytes);
  });
  ConvertLatents(params.rows, static_cast<const std::uint8_t*>(params.cache.data), latents, stream);
  const int groups = HeadGroups(params.q_latent.heads, kManyHeadsGroup);
  const std::int64_t items = params.q_latent.rows * groups;
  LaunchDependent(chunk::ChunkKernel,
                  {.grid = static_cast<unsigned>(std::min<std::int64_t>(items, multiprocessors)),
                   .threads = chunk::kThreads,
                   .shared_bytes = chunk::Plan::kBytes},
                  stream, params, latents, groups);
}

}  // namespace dsa::cuda
