// LatentAttention of bfloat16 queries over the fp8 cache with at most 16 heads: a block attends
// with all heads of a row to a range of its keys, 64 at a time.  Keys and latent values lie on the
// M side of the products, heads on the N side, where 16 are as many as are padded to.
//
//   warpgroup 0     S^T = K Q^T, 64 keys by 16 heads; P = 2^(S - reference) in half
//   warpgroups 1, 2 O^T += V^T P^T, 256 latent values each
//   warpgroups 3, 4 records to tiles of half, latent_records.cuh
//
// References and ranges of keys: as in latent_attention_many_heads.cu.  Parts announce themselves,
// announced_parts.cuh, and every block joins its share of the columns.  Bound by the gather.
#include "kernels/cuda/announced_parts.cuh"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/latent_records.cuh"
#include "kernels/cuda/latent_share.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/wgmma_half.cuh"

namespace dsa::cuda {
namespace {

constexpr int kHeads = kFewHeadsGroup;
constexpr int kGroupThreads = 128;
constexpr int kGroupWarps = kGroupThreads / kWarpSize;
constexpr int kValueGroups = 2;
constexpr int kValueThreads = kValueGroups * kGroupThreads;
constexpr int kGatherGroups = 2;
constexpr int kThreads = (1 + kValueGroups + kGatherGroups) * kGroupThreads;
constexpr int kGroupValues = kLatentValues / kValueGroups;
constexpr int kGroupTiles = kGroupValues / 64;

using Tiles = KeyTiles<2, 2, 3, 8>;
using Share = AttentionShare<kHeads, Tiles::kKeys>;
using Place = Share::Place;

// Registers per thread: 480 in all, as launched.
constexpr int kScoreRegisters = 96;  // as launched
constexpr int kValueRegisters = 136;
constexpr int kGatherRegisters = 56;
static_assert(kScoreRegisters + kValueGroups * kValueRegisters + kGatherGroups * kGatherRegisters ==
              kThreads / kGroupThreads * 96);
constexpr int kSteps = kRecordValues / 16;  // of K of the scores
constexpr int kFirstPartSteps = 256 / 16;
constexpr int kQueryTileBytes = kHeads * 128;
constexpr int kScores = kHeads / 2;  // of a thread, and of a tile of O
constexpr int kThreadHeads = kHeads / 4;
constexpr float kSlack = 8.0F;  // log2 by which scores may exceed their reference
constexpr float kNoReference = -1e30F;
constexpr float kLog2E = 1.44269504088896340736F;

enum NamedBarrier { kQueriesLoaded = 1, kScored, kSumsKnown, kPartsWeighed, kStaged };

// Addresses in shared memory.  P of a turn lies in its own keys' RoPE tile.
struct Plan {
  Tiles keys;
  unsigned queries;  // 9 tiles [16 heads, 64 values]
  unsigned powers;   // [kBuffers] barriers: P and the factors of O are there
  unsigned factors;  // [kBuffers, 16]  by which O is multiplied before P V is added
  unsigned maxima;   // [2, 4 warps, 16], in turns
  unsigned inverse;  // [16]  1 / sum

  static constexpr int kQueriesOffset = (Tiles::kBytes + 1023) / 1024 * 1024;
  static constexpr int kPowersOffset = kQueriesOffset + 9 * kQueryTileBytes;
  static constexpr int kBytes =
      kPowersOffset + Tiles::kBuffers * 8 + (Tiles::kBuffers + 2 * kGroupWarps + 1) * kHeads * 4;

  __device__ explicit Plan(unsigned base)
      : keys(base),
        queries(base + kQueriesOffset),
        powers(base + kPowersOffset),
        factors(powers + Tiles::kBuffers * 8),
        maxima(factors + Tiles::kBuffers * kHeads * 4),
        inverse(maxima + 2 * kGroupWarps * kHeads * 4) {}
  __device__ unsigned Rope(int buffer) const {
    return keys.buffers + buffer * Tiles::kBufferBytes + Tiles::kRopeTile * Tiles::kTileBytes;
  }
};
static_assert(Plan::kBytes <= 227 * 1024, "a block may have no more on sm_90");
constexpr int kStagePitch = kGroupValues * 2 + 16;  // of a head's output on its way, bytes

// Of the thread's heads 2 q, 2 q + 1, 8 + 2 q and 9 + 2 q, from [16] floats.
struct HeadValues {
  float values[kThreadHeads];
  __device__ explicit HeadValues(unsigned from, int lane) {
#pragma unroll
    for (int j = 0; j < kThreadHeads / 2; ++j) {
      const float2 pair = ptx::LoadShared2(from + (8 * j + lane % 4 * 2) * 4);
      values[2 * j] = pair.x;
      values[2 * j + 1] = pair.y;
    }
  }
  // Of score or sum 4 j + 2 h + i.
  __device__ float Of(int index) const {
    return values[index / 4 * 2 + index % 2];
  }
};

// All loads at once, addresses a constant apart.
__device__ void LoadQueries(const LatentAttentionParams& p, const Plan& plan, const Share& share,
                            int thread) {
  constexpr int kLatentChunks = kLatentValues / 8;
  constexpr int kRopeChunks = kLatentRopeValues / 8;
  constexpr int kOnce = kValueThreads / kLatentChunks;  // heads
  constexpr int kEach = kHeads / kOnce;
  constexpr int kLatentTiles = kLatentChunks / 8;
  static_assert(kHeads * kRopeChunks <= kValueThreads);
  const int chunk = thread % kLatentChunks;
  const int head = thread / kLatentChunks;
  const auto* latent = static_cast<const __nv_bfloat16*>(p.q_latent.data) +
                       share.row * p.q_latent.row_stride + head * p.q_latent.head_stride +
                       chunk * 8;
  uint4 values[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    values[i] = {0, 0, 0, 0};
    if (head + i * kOnce < share.heads) {
      values[i] = *reinterpret_cast<const uint4*>(latent + i * kOnce * p.q_latent.head_stride);
    }
  }
  const int rope_chunk = thread % kRopeChunks;
  const int rope_head = thread / kRopeChunks;
  uint4 rope = {0, 0, 0, 0};
  if (rope_head < share.heads) {
    rope = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(p.q_rope.data) +
                                           share.row * p.q_rope.row_stride +
                                           rope_head * p.q_rope.head_stride + rope_chunk * 8);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = head + i * kOnce;
    ptx::StoreWords4(
        plan.queries + chunk / 8 * kQueryTileBytes + row * 128 + ((chunk % 8) ^ (row % 8)) * 16,
        HalvesOfBf16(values[i]));
  }
  if (rope_head < kHeads) {
    ptx::StoreWords4(plan.queries + kLatentTiles * kQueryTileBytes + rope_head * 128 +
                         (rope_chunk ^ (rope_head % 8)) * 16,
                     HalvesOfBf16(rope));
  }
}

// log2 of the sum of powers of a part, of every head: from block `split` to its sibling `reader`,
// itself too.
__device__ float* MailOf(const AttentionParts& parts, const Share& share, int reader, int split) {
  return parts.logs +
         ((std::int64_t{share.item} * parts.splits + reader) * parts.splits + split) * kHeads;
}

// Score 4 j + 2 h + i of lane 4 g + q of warp w is of key 16 w + g + 8 h and head 8 j + 2 q + i.
class Scorer final {
 public:
  __device__ Scorer(const LatentAttentionParams& p, const Plan& plan)
      : plan_(plan),
        lane_(static_cast<int>(threadIdx.x % kWarpSize)),
        warp_(static_cast<int>(threadIdx.x / kWarpSize % kGroupWarps)),
        scale_(static_cast<float>(p.softmax_scale * static_cast<double>(kLog2E))) {}

  __device__ void Run(int turns) {
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
      float scores[kScores];
      Multiply(scores);
      Publish(scores, turn % 2);
      at_.Next();
    }
  }

  // Leaves 1 / sum in shared memory and sends, of a part, log2 of the sum of powers to all
  // siblings.
  __device__ void Finish(const AttentionParts& parts, const Share& share) {
    ptx::NamedBarrierSync(kScored, kGroupThreads);  // maxima are read no more
#pragma unroll
    for (int n = 0; n < kThreadHeads; ++n) {
      float& sum = sums_[n];
      sum += __shfl_xor_sync(kAllLanes, sum, 4);
      sum += __shfl_xor_sync(kAllLanes, sum, 8);
      sum += __shfl_xor_sync(kAllLanes, sum, 16);
    }
    Leave(sums_, plan_.maxima);
    ptx::NamedBarrierSync(kScored, kGroupThreads);
    if (warp_ == 0) {
      float logs[kThreadHeads];
#pragma unroll
      for (int n = 0; n < kThreadHeads; ++n) {
        const int head = n / 2 * 8 + lane_ % 4 * 2 + n % 2;
        float sum = 0.0F;
        for (int warp = 0; warp < kGroupWarps; ++warp) {
          sum += ptx::LoadShared(plan_.maxima + (warp * kHeads + head) * 4);
        }
        logs[n] = sum > 0.0F ? references_[n] + log2f(sum) : -INFINITY;
        if (lane_ < 4) {
          ptx::StoreFloat(plan_.inverse + head * 4, sum > 0.0F ? 1.0F / sum : 0.0F);
        }
      }
      if (parts.splits > 1) {
        for (int reader = lane_ / 4; reader < parts.splits; reader += kWarpSize / 4) {
#pragma unroll
          for (int n = 0; n < kThreadHeads; ++n) {
            SendLog(MailOf(parts, share, reader, share.split) + n / 2 * 8 + lane_ % 4 * 2 + n % 2,
                    logs[n]);
          }
        }
      }
    }
    ptx::NamedBarrierArrive(kSumsKnown, kGroupThreads + kValueThreads);
  }

 private:
  __device__ void Multiply(float (&scores)[kScores]) {
    const std::uint64_t queries = ptx::SwizzledTile(plan_.queries);
    const std::uint64_t keys =
        ptx::SwizzledTile(plan_.keys.buffers + at_.buffer * Tiles::kBufferBytes);
    ptx::BarrierWait(plan_.keys.Full(at_.buffer, 0), at_.phase);
    ptx::AsyncProxyFence();
    ptx::PinRegisters(scores);
    ptx::WgmmaFence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step == kFirstPartSteps) {
        ptx::BarrierWait(plan_.keys.Full(at_.buffer, 1), at_.phase);
        ptx::AsyncProxyFence();
      }
      ptx::WgmmaHalf16(scores, keys + (step / 4 * Tiles::kTileBytes + step % 4 * 32) / 16,
                       queries + (step / 4 * kQueryTileBytes + step % 4 * 32) / 16, step > 0);
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(scores);
  }

  // A warp's values of its heads, to [4 warps, 16].
  __device__ void Leave(const float (&values)[kThreadHeads], unsigned to) const {
    if (lane_ < 4) {
#pragma unroll
      for (int n = 0; n < kThreadHeads; ++n) {
        ptx::StoreFloat(to + (warp_ * kHeads + n / 2 * 8 + lane_ * 2 + n % 2) * 4, values[n]);
      }
    }
  }

  // Scores to powers in shared memory.
  __device__ void Publish(float (&scores)[kScores], int parity) {
    const int buffer = at_.buffer;
    // Of keys g and 8 + g; a gathering warp's four are a word.
    static_assert(Tiles::kWarpKeys == 4);
    const unsigned words = plan_.keys.Present(buffer) + (4 * warp_ + lane_ / 16) * 4;
    const unsigned lower = ptx::LoadWord(words);
    const unsigned upper = ptx::LoadWord(words + 8);
    float largest[kThreadHeads];
#pragma unroll
    for (int n = 0; n < kThreadHeads; ++n) {
      largest[n] = -INFINITY;
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const unsigned keys = i / 2 % 2 == 0 ? lower : upper;
      scores[i] = (keys >> (lane_ / 4 % 4) & 1U) != 0 ? scores[i] * scale_ : -INFINITY;
      float& own = largest[i / 4 * 2 + i % 2];
      own = fmaxf(own, scores[i]);
    }
#pragma unroll
    for (int n = 0; n < kThreadHeads; ++n) {
      float& value = largest[n];
      value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 4));
      value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 8));
      value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 16));
    }
    const unsigned maxima = plan_.maxima + parity * kGroupWarps * kHeads * 4;
    Leave(largest, maxima);
    // Every warp has its scores of this turn, so the RoPE tile is read no more.
    ptx::NamedBarrierSync(kScored, kGroupThreads);
    float factors[kThreadHeads];
#pragma unroll
    for (int warp = 0; warp < kGroupWarps; ++warp) {
      const HeadValues others(maxima + warp * kHeads * 4, lane_);
#pragma unroll
      for (int n = 0; n < kThreadHeads; ++n) {
        largest[n] = fmaxf(largest[n], others.values[n]);
      }
    }
#pragma unroll
    for (int n = 0; n < kThreadHeads; ++n) {
      const float reference = largest[n] > references_[n] + kSlack ? largest[n] : references_[n];
      factors[n] = Exp2(references_[n] - reference);
      references_[n] = reference;
      sums_[n] *= factors[n];
    }
    if (warp_ == 0) {
      if (lane_ < 4) {
#pragma unroll
        for (int n = 0; n < kThreadHeads; ++n) {
          ptx::StoreFloat(plan_.factors + (buffer * kHeads + n / 2 * 8 + lane_ * 2 + n % 2) * 4,
                          factors[n]);
        }
      }
    }
    unsigned powers[kScores / 2];  // 2 j + h: two heads
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      const int n = i / 4 * 2;
      const float low = Exp2(scores[i] - references_[n]);
      const float high = Exp2(scores[i + 1] - references_[n + 1]);
      sums_[n] += low;
      sums_[n + 1] += high;
      powers[i / 2] = HalvesOf(low, high);
    }
    // Rows of P^T are heads: 64 keys, 128 bytes.
    const int head = lane_ / 16 * 8 + lane_ % 8;
    const int piece = (2 * warp_ + lane_ / 8 % 2) ^ (head % 8);
    ptx::StoreMatricesTransposed(plan_.Rope(buffer) + head * 128 + piece * 16, powers);
    ptx::AsyncProxyFence();
    __syncwarp();
    if (lane_ == 0) {
      ptx::BarrierArrive(plan_.powers + buffer * 8);
    }
  }

  const Plan& plan_;
  int lane_;
  int warp_;
  float scale_;
  float references_[kThreadHeads] = {kNoReference, kNoReference, kNoReference, kNoReference};
  float sums_[kThreadHeads] = {};  // of the thread's keys
  BufferCursor<Tiles::kBuffers> at_;
};

// O^T of 256 latent values: sum 4 j + 2 h + i of tile t is of value 64 t + 16 w + g + 8 h and head
// 8 j + 2 q + i.
using Sums = float[kGroupTiles][kScores];

__device__ void AddValues(const Plan& plan, int group, int turns, Sums& sums) {
  const int lane = static_cast<int>(threadIdx.x % kWarpSize);
#pragma unroll
  for (int i = 0; i < kGroupTiles * kScores; ++i) {
    sums[i / kScores][i % kScores] = 0.0F;
  }
  BufferCursor<Tiles::kBuffers> at;
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    const std::uint64_t powers = ptx::SwizzledTile(plan.Rope(at.buffer));
    const std::uint64_t values =
        ptx::SwizzledColumns(plan.keys.buffers + at.buffer * Tiles::kBufferBytes +
                                 group * kGroupTiles * Tiles::kTileBytes,
                             Tiles::kTileBytes);
    ptx::BarrierWait(plan.powers + at.buffer * 8, at.phase);
    const HeadValues factors(plan.factors + at.buffer * kHeads * 4, lane);
#pragma unroll
    for (int tile = 0; tile < kGroupTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        sums[tile][i] *= factors.Of(i);
      }
      ptx::PinRegisters(sums[tile]);
    }
    ptx::WgmmaFence();
#pragma unroll
    for (int step = 0; step < Tiles::kKeys / 16; ++step) {
#pragma unroll
      for (int tile = 0; tile < kGroupTiles; ++tile) {
        ptx::WgmmaHalf16Turned(sums[tile], values + tile * (Tiles::kTileBytes / 16) + step * 128,
                               powers + step * 2, true);
      }
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
#pragma unroll
    for (int tile = 0; tile < kGroupTiles; ++tile) {
      ptx::PinRegisters(sums[tile]);
    }
    plan.keys.Release(at.buffer, lane, 1);
    at.Next();
  }
}

// Through shared memory, where the ring was, to whole rows.
__device__ void StoreOutputs(const LatentAttentionParams& p, const Plan& plan, const Share& share,
                             int group, const Sums& sums, const HeadValues& inverse) {
  const int thread = static_cast<int>(threadIdx.x % kGroupThreads);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const unsigned stage = plan.keys.ring + group * kHeads * kStagePitch;
  const int own_head = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int tile = 0; tile < kGroupTiles; ++tile) {
    unsigned pairs[kScores / 2];
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      pairs[i / 2] =
          Bf16PairOf(sums[tile][i] * inverse.Of(i), sums[tile][i + 1] * inverse.Of(i + 1));
    }
    const int value = tile * 64 + warp * 16 + lane / 8 % 2 * 8;
    ptx::StoreMatricesTransposed(stage + own_head * kStagePitch + value * 2, pairs);
  }
  ptx::NamedBarrierSync(kStaged + group, kGroupThreads);
  auto* target = static_cast<__nv_bfloat16*>(p.o_latent.data) + share.row * p.o_latent.row_stride +
                 group * kGroupValues;
  constexpr int kRowChunks = kGroupValues / 8;
#pragma unroll
  for (int i = thread; i < kHeads * kRowChunks; i += kGroupThreads) {
    const int head = i / kRowChunks;
    if (head < share.heads) {
      *reinterpret_cast<uint4*>(target + (share.first_head + head) * p.o_latent.head_stride +
                                i % kRowChunks * 8) =
          ptx::LoadWords4(stage + head * kStagePitch + i % kRowChunks * 16);
    }
  }
}

// The parts of an item: [splits, 8, 256 threads] vectors of sums 4 j .. 4 j + 3 of a tile.
constexpr int kPartVectors = kGroupTiles * kScores / 4;
constexpr int kPartPlaces = kPartVectors * kValueThreads;

__device__ void SendParts(const AttentionParts& parts, const Share& share, int thread,
                          const Sums& sums, const HeadValues& inverse) {
  auto* own = reinterpret_cast<float4*>(parts.outputs) +
              (std::int64_t{share.item} * parts.splits + share.split) * kPartPlaces + thread;
#pragma unroll
  for (int v = 0; v < kPartVectors; ++v) {
    const float* vector = sums[v / 2] + v % 2 * 4;
    const float low = inverse.values[v % 2 * 2];
    const float high = inverse.values[v % 2 * 2 + 1];
    SendPart(own + v * kValueThreads,
             make_float4(vector[0] * low, vector[1] * high, vector[2] * low, vector[3] * high));
  }
}

// This block's share of the places: every thread has eight vectors, of up to eight parts; of more,
// lanes 8 apart have parts of the same place.
template <int kSplits>
__device__ void JoinParts(const LatentAttentionParams& p, const AttentionParts& parts,
                          const Plan& plan, const Share& share, int thread) {
  constexpr int kEach = kSplits < 8 ? kSplits : 8;  // parts
  constexpr int kSharers = kSplits / kEach;
  constexpr int kPlaces = kPartPlaces / kSplits * kSharers / kValueThreads;
  static_assert(kSharers <= 4 && kPlaces * kEach == kPartVectors);
  constexpr int kWarpPlaces = kWarpSize / kSharers;
  const int lane = thread % kWarpSize;
  const int first_split = lane / kWarpPlaces * kEach;
  const int first_place =
      share.split * (kPartPlaces / kSplits) + thread / kWarpSize * kWarpPlaces + lane % kWarpPlaces;
  float4* const from = reinterpret_cast<float4*>(parts.outputs) +
                       (std::int64_t{share.item} * kSplits + first_split) * kPartPlaces +
                       first_place;
  const unsigned weights = plan.keys.buffers;
  float* const logs = MailOf(parts, share, share.split, 0);
  WeighParts<kValueThreads, Share>(kSplits, weights, thread, [logs](int split, int head) {
    return ReceiveLog(logs + split * kHeads + head);
  });
  float4 values[kPlaces * kEach];
  ReceiveParts(values, [&](int i) {
    return from + i % kEach * kPartPlaces + i / kEach * (kValueThreads / kSharers);
  });
  ptx::NamedBarrierSync(kPartsWeighed, kValueThreads);
#pragma unroll
  for (int i = 0; i < kPlaces; ++i) {
    const int place = first_place + i * (kValueThreads / kSharers);
    const int vector = place / kValueThreads;
    const int group = place % kValueThreads / kGroupThreads;
    const int warp = place % kGroupThreads / kWarpSize;
    const int owner = place % kWarpSize;
    const int head = vector % 2 * 8 + owner % 4 * 2;
    const unsigned own = weights + head * 4;
    float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll
    for (int split = 0; split < kEach; ++split) {
      const float2 weight = ptx::LoadShared2(own + (first_split + split) * kHeads * 4);
      const float4& value = values[i * kEach + split];
      sum.x = fmaf(weight.x, value.x, sum.x);
      sum.y = fmaf(weight.y, value.y, sum.y);
      sum.z = fmaf(weight.x, value.z, sum.z);
      sum.w = fmaf(weight.y, value.w, sum.w);
    }
#pragma unroll
    for (int offset = kWarpPlaces; offset < kWarpSize; offset *= 2) {
      sum.x += __shfl_xor_sync(kAllLanes, sum.x, offset);
      sum.y += __shfl_xor_sync(kAllLanes, sum.y, offset);
      sum.z += __shfl_xor_sync(kAllLanes, sum.z, offset);
      sum.w += __shfl_xor_sync(kAllLanes, sum.w, offset);
    }
    const float2 inverse = ptx::LoadShared2(own + kSplits * kHeads * 4);
    auto* target = static_cast<__nv_bfloat16*>(p.o_latent.data) +
                   share.row * p.o_latent.row_stride +
                   (share.first_head + head) * p.o_latent.head_stride + group * kGroupValues +
                   vector / 2 * 64 + warp * 16 + owner / 4;
    if (lane < kWarpPlaces && head < share.heads) {
      target[0] = __float2bfloat16_rn(sum.x * inverse.x);
      target[8] = __float2bfloat16_rn(sum.z * inverse.x);
    }
    if (lane < kWarpPlaces && head + 1 < share.heads) {
      target[p.o_latent.head_stride] = __float2bfloat16_rn(sum.y * inverse.y);
      target[p.o_latent.head_stride + 8] = __float2bfloat16_rn(sum.w * inverse.y);
    }
  }
}

__device__ void RunValues(const LatentAttentionParams& p, const AttentionParts& parts,
                          const Plan& plan, const Share& share, int group) {
  const int thread = static_cast<int>((threadIdx.x - kGroupThreads) % kValueThreads);
  if (share.turns > 0) {
    LoadQueries(p, plan, share, thread);
    ptx::AsyncProxyFence();
  }
  ptx::NamedBarrierArrive(kQueriesLoaded, kGroupThreads + kValueThreads);
  Sums sums;
  AddValues(plan, group, share.turns, sums);
  ptx::NamedBarrierSync(kSumsKnown, kGroupThreads + kValueThreads);
  const HeadValues inverse(plan.inverse, thread % kWarpSize);
  if (parts.splits == 1) {
    StoreOutputs(p, plan, share, group, sums, inverse);
    return;
  }
  SendParts(parts, share, thread, sums, inverse);
  WithSplits(parts.splits, [&](auto splits) {
    JoinParts<decltype(splits)::value>(p, parts, plan, share, thread);
  });
}

__global__ void __launch_bounds__(kThreads, 1)
    FewHeadsKernel(const __grid_constant__ LatentAttentionParams p,
                   const __grid_constant__ AttentionParts parts, unsigned /*groups*/) {
  constexpr unsigned kGroups = 1;
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const Plan plan(ptx::SharedAddress(memory));
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / kGroupThreads), 0);
  if (threadIdx.x == 0) {
    plan.keys.InitBarriers(kValueGroups * kGroupWarps, 1);
    for (int i = 0; i < Tiles::kBuffers; ++i) {
      ptx::BarrierInit(plan.powers + i * 8, kGroupWarps);
    }
    ptx::BarrierInitFence();
  }
  ptx::AllowSuccessor();
  __syncthreads();
  ptx::WaitForPredecessors();
  FirstWords ahead;
  const auto share = TakeShare<1, Share>(p, plan.keys, Place(p, kGroups, parts.splits),
                                         group > kValueGroups, ahead);
  if (group == 0) {
    Scorer scorer(p, plan);
    ptx::NamedBarrierSync(kQueriesLoaded, kGroupThreads + kValueThreads);
    scorer.Run(share.turns);
    scorer.Finish(parts, share);
  } else if (group > kValueGroups) {
    ptx::LowerRegisters<kGatherRegisters>();
    Gatherer<1, Tiles>(plan.keys, share.keys, p.cache.data, share.first, share.last)
        .Run(share.turns, ahead);
  } else {
    ptx::RaiseRegisters<kValueRegisters>();
    RunValues(p, parts, plan, share, group - 1);
  }
}

}  // namespace

void RunFewHeads(const LatentAttentionParams& params, const AttentionParts& parts,
                 cudaStream_t stream) {
  LaunchShares<FewHeadsKernel, kHeads, kThreads, Plan::kBytes>(params, parts, stream);
}

}  // namespace dsa::cuda
