// LatentAttention of bfloat16 queries over the fp8 cache: a block attends with 64 heads of a row to
// a range of its keys, 64 at a time.
//
//   warpgroup 0     S = Q K^T, 64 heads by 64 keys; P = 2^(S - reference) in half
//   warpgroups 1, 2 O += P V, 256 latent values each, in registers for the whole range
//   warpgroup 3     records to tiles of half, latent_records.cuh
//
// An even number of groups of heads: two blocks with the same keys are a cluster.  Each brings and
// converts half of a turn's keys and stores them in both.
//
// Q lies in registers of warpgroup 0 for values [0, 256), in shared memory for the others, which is
// what leaves room for two buffers of keys.  P V of a turn is under way beside the scores of the
// next.  P takes the place of its own keys' RoPE tile, which nobody reads once the scores are
// there.
//
// References are those of a running softmax, but move only when a row's largest score exceeds them
// by 2^8: P fits a half, the division by the sum makes up for it, and O is rescaled in the first
// turns and then hardly ever.
//
// Few rows: a row's keys are cut into up to 32 ranges of whole turns, a block each.  A block writes
// its part, of which the sum is one, and log2 of the sum of powers to scratch, waits for its
// siblings, and joins its share of the columns, in order.  Parts are means of latents, which are
// halves, so they are written as halves: an error of 2^-12 beside the output's rounding of 2^-9. So
// all blocks of a launch must run at once, and launches of one device must not overlap: one stream.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/latent_records.cuh"
#include "kernels/cuda/latent_share.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/wgmma_half.cuh"
#include "kernels/cuda/siblings.cuh"

namespace dsa::cuda {
namespace {

constexpr int kHeads = kManyHeadsGroup;  // of a block
constexpr int kGroupThreads = 128;
constexpr int kGroupWarps = kGroupThreads / kWarpSize;
constexpr int kValueGroups = 2;
constexpr int kValueThreads = kValueGroups * kGroupThreads;
constexpr int kThreads = (1 + kValueGroups + 1) * kGroupThreads;
constexpr int kGroupValues = kLatentValues / kValueGroups;
constexpr int kProductValues = 128;  // of one instruction; one of 256 takes more registers
constexpr int kProducts = kGroupValues / kProductValues;
constexpr int kSums = kProductValues / 2;  // of O, per thread and product
using Sums = float[kProducts][kSums];

// Registers per thread: 512 in all, as launched.
constexpr int kScoreRegisters = 128;  // as launched
constexpr int kValueRegisters = 160;
constexpr int kGatherRegisters = 64;
static_assert(kScoreRegisters + kValueGroups * kValueRegisters + kGatherRegisters ==
              kThreads / kGroupThreads * 128);

using Tiles = KeyTiles<2, 2, 2, 4>;
constexpr int kSteps = kRecordValues / 16;  // of K of the scores
constexpr int kFirstPartSteps = kGroupValues / 16;
constexpr int kRegisterSteps = 16;  // whose Q is in registers
constexpr int kSharedTiles = (kSteps - kRegisterSteps) / 4;
constexpr int kQueryTileBytes = kHeads * 128;
static_assert(Tiles::kWarpKeys == 8);
constexpr int kScores = Tiles::kKeys / 2;  // of a thread
constexpr float kSlack = 8.0F;             // log2 by which scores may exceed their reference
constexpr float kNoReference = -1e30F;
constexpr float kLog2E = 1.44269504088896340736F;

enum NamedBarrier { kQueriesLoaded = 1, kScored, kSumsKnown, kPartsWritten };

// Addresses in shared memory.
struct Plan {
  unsigned queries;  // [kSharedTiles] tiles [64 heads, 64 values]
  Tiles keys;
  unsigned powers;   // [kBuffers] barriers: P and the factors of O are there
  unsigned factors;  // [kBuffers, 64]  by which O is multiplied before P V is added
  unsigned inverse;  // [64]  1 / sum

  static constexpr int kQueryBytes = kSharedTiles * kQueryTileBytes;
  static constexpr int kPowersOffset = (kQueryBytes + Tiles::kBytes + 7) / 8 * 8;
  static constexpr int kBytes =
      kPowersOffset + Tiles::kBuffers * 8 + (Tiles::kBuffers + 1) * kHeads * 4;

  __device__ explicit Plan(unsigned base)
      : queries(base),
        keys(base + kQueryBytes),
        powers(base + kPowersOffset),
        factors(powers + Tiles::kBuffers * 8),
        inverse(factors + Tiles::kBuffers * kHeads * 4) {}
  __device__ unsigned Rope(int buffer) const {
    return keys.buffers + buffer * Tiles::kBufferBytes + Tiles::kRopeTile * Tiles::kTileBytes;
  }
};
static_assert(Plan::kBytes <= 227 * 1024, "a block may have no more on sm_90");
constexpr int kStagePitch = kGroupValues * 2 + 16;  // of a row of output on its way, bytes
static_assert(kHeads * kStagePitch <= Plan::kQueryBytes);
static_assert(kHeads * kStagePitch <= Tiles::kStages * Tiles::kStageBytes);
static_assert((kSplitsMax + 1) * kHeads * 4 <= Plan::kQueryBytes);

using Share = AttentionShare<kHeads, Tiles::kKeys>;
using Place = Share::Place;

// Q of values from 256 on, by the warpgroups of the values: all loads at once, addresses a constant
// apart.
__device__ void LoadSharedQueries(const LatentAttentionParams& p, const Plan& plan,
                                  const Share& share, int thread) {
  constexpr int kLatentTiles = kSharedTiles - 1;
  constexpr int kLatentOnce = kValueThreads / (kLatentTiles * 8);  // heads
  constexpr int kRopeOnce = kValueThreads / 8;
  constexpr int kLatentEach = kHeads / kLatentOnce;
  constexpr int kRopeEach = kHeads / kRopeOnce;
  const int chunk = thread % (kLatentTiles * 8);
  const int head = thread / (kLatentTiles * 8);
  const int rope_chunk = thread % 8;
  const int rope_head = thread / 8;
  const auto* latent =
      static_cast<const __nv_bfloat16*>(p.q_latent.data) + share.row * p.q_latent.row_stride +
      (share.first_head + head) * p.q_latent.head_stride + kRegisterSteps * 16 + chunk * 8;
  const auto* rope = static_cast<const __nv_bfloat16*>(p.q_rope.data) +
                     share.row * p.q_rope.row_stride +
                     (share.first_head + rope_head) * p.q_rope.head_stride + rope_chunk * 8;
  const auto load = [&share](const __nv_bfloat16* from, int of_head) {
    return of_head < share.heads ? *reinterpret_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
  };
  const auto store = [&plan](uint4 values, int tile, int of_head, int piece) {
    ptx::StoreWords4(
        plan.queries + tile * kQueryTileBytes + of_head * 128 + (piece ^ (of_head % 8)) * 16,
        HalvesOfBf16(values));
  };
  uint4 latents[kLatentEach];
  uint4 ropes[kRopeEach];
#pragma unroll
  for (int i = 0; i < kLatentEach; ++i) {
    latents[i] = load(latent + i * kLatentOnce * p.q_latent.head_stride, head + i * kLatentOnce);
  }
#pragma unroll
  for (int i = 0; i < kRopeEach; ++i) {
    ropes[i] = load(rope + i * kRopeOnce * p.q_rope.head_stride, rope_head + i * kRopeOnce);
  }
#pragma unroll
  for (int i = 0; i < kLatentEach; ++i) {
    store(latents[i], chunk / 8, head + i * kLatentOnce, chunk % 8);
  }
#pragma unroll
  for (int i = 0; i < kRopeEach; ++i) {
    store(ropes[i], kLatentTiles, rope_head + i * kRopeOnce, rope_chunk);
  }
}

// Scores of heads 16 w + g and + 8 of warp w, lane 4 g + q: score 4 j + 2 h + i is of head g + 8 h
// and key 8 j + 2 q + i.
class Scorer final {
 public:
  __device__ Scorer(const LatentAttentionParams& p, const Plan& plan, const Share& share)
      : plan_(plan),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        row_(static_cast<int>(threadIdx.x) / kWarpSize % kGroupWarps * 16 + lane_ / 4),
        scale_(static_cast<float>(p.softmax_scale * static_cast<double>(kLog2E))) {
    const auto* row = static_cast<const __nv_bfloat16*>(p.q_latent.data) +
                      share.row * p.q_latent.row_stride +
                      (share.first_head + row_) * p.q_latent.head_stride + lane_ % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool exists = row_ + half * 8 < share.heads;
      const __nv_bfloat16* from = row + half * 8 * p.q_latent.head_stride;
#pragma unroll
      for (int step = 0; step < kRegisterSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const unsigned pair =
              exists ? *reinterpret_cast<const unsigned*>(from + step * 16 + i * 8) : 0U;
          queries_[step][2 * i + half] = HalvesOfBf16(pair);
        }
      }
    }
  }

  __device__ void Run(int turns) {
    float scores[kScores];
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
      Multiply(scores);
      Publish(scores);
      at_.Next();
    }
  }

  // Leaves 1 / sum in shared memory and, of a part, log2 of the sum of powers in `logs`.
  __device__ void Finish(float* logs) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = sums_[half];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (lane_ % 4 == 0) {
        ptx::StoreFloat(plan_.inverse + (row_ + half * 8) * 4, sum > 0.0F ? 1.0F / sum : 0.0F);
        if (logs != nullptr) {
          logs[row_ + half * 8] = sum > 0.0F ? references_[half] + log2f(sum) : -INFINITY;
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
      const std::uint64_t key = keys + (step / 4 * Tiles::kTileBytes + step % 4 * 32) / 16;
      if (step < kRegisterSteps) {
        const unsigned(&query)[4] = queries_[step];
        ptx::WgmmaHalf<64>::Run(scores, query[0], query[1], query[2], query[3], key, step > 0);
      } else {
        constexpr int kFirstTile = kRegisterSteps / 4;
        ptx::WgmmaHalf64(scores,
                         queries + ((step / 4 - kFirstTile) * kQueryTileBytes + step % 4 * 32) / 16,
                         key, true);
      }
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(scores);
  }

  // Scores to powers in shared memory.
  __device__ void Publish(float (&scores)[kScores]) {
    const int buffer = at_.buffer;
    unsigned present[Tiles::kPresentWords];
#pragma unroll
    for (int i = 0; i < Tiles::kPresentWords; i += 4) {
      const uint4 words = ptx::LoadWords4(plan_.keys.Present(buffer) + i * 4);
      present[i] = words.x;
      present[i + 1] = words.y;
      present[i + 2] = words.z;
      present[i + 3] = words.w;
    }
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const unsigned keys = present[i / 4] >> (lane_ % 4 * 2);  // of a gathering warp
      scores[i] = (keys >> i % 2 & 1U) != 0 ? scores[i] * scale_ : -INFINITY;
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
  }

  const Plan& plan_;
  int lane_;
  int row_;
  float scale_;
  unsigned queries_[kRegisterSteps][4];
  float references_[2] = {kNoReference, kNoReference};  // in units of log2
  float sums_[2] = {};                                  // of the thread's keys
  BufferCursor<Tiles::kBuffers> at_;
};

// O of 64 heads and 256 latent values: sum 4 j + 2 h + i of product k is of head 16 w + g + 8 h and
// value 128 k + 8 j + 2 q + i.
__device__ void AddValues(const Plan& plan, int group, int turns, int peers, Sums& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int row = static_cast<int>(threadIdx.x) / kWarpSize % kGroupWarps * 16 + lane / 4;
  constexpr int kGroupTiles = kGroupValues / 64;
#pragma unroll
  for (int i = 0; i < kProducts * kSums; ++i) {
    sums[i / kSums][i % kSums] = 0.0F;
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
    const unsigned factors = plan.factors + (at.buffer * kHeads + row) * 4;
    const float lower = ptx::LoadShared(factors);
    const float upper = ptx::LoadShared(factors + 8 * 4);
    if (__any_sync(kAllLanes, lower != 1.0F || upper != 1.0F)) {
#pragma unroll
      for (int i = 0; i < kProducts * kSums; ++i) {
        sums[i / kSums][i % kSums] *= i / 2 % 2 == 0 ? lower : upper;
      }
    }
    ptx::PinRegisters(sums[0]);
    ptx::PinRegisters(sums[1]);
    ptx::WgmmaFence();
#pragma unroll
    for (int step = 0; step < Tiles::kKeys / 16; ++step) {
#pragma unroll
      for (int product = 0; product < kProducts; ++product) {
        ptx::WgmmaHalf128(
            sums[product], powers + step * 2,
            values + step * 128 + product * (kProductValues / 64) * (Tiles::kTileBytes / 16), true);
      }
    }
    ptx::WgmmaCommit();
    ptx::WgmmaWait<0>();
    ptx::PinRegisters(sums[0]);
    ptx::PinRegisters(sums[1]);
    plan.keys.Release(at.buffer, lane, peers);
    at.Next();
  }
}

// Through shared memory, where queries and the ring were, to whole rows: of the last buffers copies
// to the peer may still read.
__device__ void StoreOutputs(const LatentAttentionParams& p, const Plan& plan, const Share& share,
                             int group, const Sums& sums, float lower, float upper) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize % kGroupWarps;
  const unsigned stage = (group == 0 ? plan.queries : plan.keys.ring) + warp * 16 * kStagePitch;
#pragma unroll
  for (int i = 0; i < kProducts * kSums; i += 2) {
    const float inverse = i / 2 % 2 == 0 ? lower : upper;
    const float* own = sums[i / kSums] + i % kSums;
    ptx::StoreWord(
        stage + (lane / 4 + i / 2 % 2 * 8) * kStagePitch + (i / 4 * 8 + lane % 4 * 2) * 2,
        Bf16PairOf(own[0] * inverse, own[1] * inverse));
  }
  __syncwarp();
  auto* target = static_cast<__nv_bfloat16*>(p.o_latent.data) + share.row * p.o_latent.row_stride +
                 (share.first_head + warp * 16) * p.o_latent.head_stride + group * kGroupValues +
                 lane * 8;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    if (warp * 16 + i < share.heads) {
      *reinterpret_cast<uint4*>(target + i * p.o_latent.head_stride) =
          ptx::LoadWords4(stage + i * kStagePitch + lane * 16);
    }
  }
}

// The parts of an item: [splits, 32, 256 threads] vectors of sums 4 j .. 4 j + 3, as halves.
constexpr int kPartVectors = kProducts * kSums / 4;
constexpr std::int64_t kPartValues = std::int64_t{kPartVectors} * kValueThreads * 4;

// Writes this block's part and waits until those of its siblings are there.
__device__ void WritePart(const AttentionParts& parts, const Share& share, int thread,
                          const Sums& sums, float lower, float upper) {
  auto* own = reinterpret_cast<uint2*>(parts.outputs) +
              (share.item * parts.splits + share.split) * (kPartValues / 4) + thread;
#pragma unroll
  for (int j = 0; j < kPartVectors; ++j) {
    const float* vector = sums[4 * j / kSums] + 4 * j % kSums;
    __stcg(own + j * kValueThreads, make_uint2(HalvesOf(vector[0] * lower, vector[1] * lower),
                                               HalvesOf(vector[2] * upper, vector[3] * upper)));
  }
  MeetParts<kValueThreads>(parts, share, thread, kPartsWritten);
}

// This block's share of the columns: 1 / kSplits of the vectors of every thread.
template <int kSplits>
__device__ void JoinParts(const LatentAttentionParams& p, const AttentionParts& parts,
                          const Plan& plan, const Share& share, int thread) {
  constexpr int kVectors = kPartVectors / kSplits;
  const int group = thread / kGroupThreads;
  const int lane = thread % kWarpSize;
  const int row = thread % kGroupThreads / kWarpSize * 16 + lane / 4;
  const bool has_heads = row - lane / 4 < share.heads;
  const auto* from = reinterpret_cast<const uint2*>(parts.outputs) +
                     share.item * kSplits * (kPartValues / 4) +
                     share.split * kVectors * kValueThreads + thread;
  uint2 values[kVectors][kSplits];  // all on their way while weights are made
  if (has_heads) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
#pragma unroll
      for (int split = 0; split < kSplits; ++split) {
        values[i][split] = __ldcg(from + split * (kPartValues / 4) + i * kValueThreads);
      }
    }
  }
  const unsigned weights = plan.queries;
  const float* logs = LogsOf(parts, share, 0);
  WeighParts<kValueThreads, Share>(kSplits, weights, thread, [logs](int split, int head) {
    return __ldcg(logs + split * kHeads + head);
  });
  ptx::NamedBarrierSync(kPartsWritten, kValueThreads);
  if (!has_heads) {
    return;
  }
  const unsigned own = weights + row * 4;
  const float lower_inverse = ptx::LoadShared(own + kSplits * kHeads * 4);
  const float upper_inverse = ptx::LoadShared(own + kSplits * kHeads * 4 + 8 * 4);
  auto* target = static_cast<__nv_bfloat16*>(p.o_latent.data) + share.row * p.o_latent.row_stride +
                 (share.first_head + row) * p.o_latent.head_stride + group * kGroupValues +
                 lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll
    for (int split = 0; split < kSplits; ++split) {
      const float lower = ptx::LoadShared(own + split * kHeads * 4);
      const float upper = ptx::LoadShared(own + split * kHeads * 4 + 8 * 4);
      const float2 first = FloatsOf(values[i][split].x);
      const float2 second = FloatsOf(values[i][split].y);
      sum.x = fmaf(lower, first.x, sum.x);
      sum.y = fmaf(lower, first.y, sum.y);
      sum.z = fmaf(upper, second.x, sum.z);
      sum.w = fmaf(upper, second.y, sum.w);
    }
    __nv_bfloat16* values_of = target + (share.split * kVectors + i) * 8;
    if (row < share.heads) {
      *reinterpret_cast<__nv_bfloat162*>(values_of) =
          __floats2bfloat162_rn(sum.x * lower_inverse, sum.y * lower_inverse);
    }
    if (row + 8 < share.heads) {
      *reinterpret_cast<__nv_bfloat162*>(values_of + 8 * p.o_latent.head_stride) =
          __floats2bfloat162_rn(sum.z * upper_inverse, sum.w * upper_inverse);
    }
  }
}

__device__ void RunValues(const LatentAttentionParams& p, const AttentionParts& parts,
                          const Plan& plan, const Share& share, int group, int peers) {
  const int thread = static_cast<int>((threadIdx.x - kGroupThreads) % kValueThreads);
  if (share.turns > 0) {
    LoadSharedQueries(p, plan, share, thread);
    ptx::AsyncProxyFence();
  }
  ptx::NamedBarrierArrive(kQueriesLoaded, kGroupThreads + kValueThreads);
  Sums sums;
  AddValues(plan, group, share.turns, peers, sums);
  ptx::NamedBarrierSync(kSumsKnown, kGroupThreads + kValueThreads);
  const int row = thread % kGroupThreads / kWarpSize * 16 + thread % kWarpSize / 4;
  const float lower = ptx::LoadShared(plan.inverse + row * 4);
  const float upper = ptx::LoadShared(plan.inverse + (row + 8) * 4);
  if (parts.splits == 1) {
    StoreOutputs(p, plan, share, group, sums, lower, upper);
    return;
  }
  WritePart(parts, share, thread, sums, lower, upper);
  WithSplits(parts.splits, [&](auto splits) {
    JoinParts<decltype(splits)::value>(p, parts, plan, share, thread);
  });
  if (thread == 0) {
    LeaveSiblings(parts.counters + share.item * 2, parts.splits);
  }
}

// kPeers: blocks of a cluster, groups of heads of the same range.
template <int kPeers>
__global__ void __launch_bounds__(kThreads, 1)
    ManyHeadsKernel(const __grid_constant__ LatentAttentionParams p,
                    const __grid_constant__ AttentionParts parts, unsigned groups) {
  extern __shared__ __align__(1024) std::uint8_t memory[];
  const Plan plan(ptx::SharedAddress(memory));
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / kGroupThreads), 0);
  if (threadIdx.x == 0) {
    plan.keys.InitBarriers(kValueGroups * kGroupWarps, kPeers);
    for (int i = 0; i < Tiles::kBuffers; ++i) {
      ptx::BarrierInit(plan.powers + i * 8, kGroupWarps);
    }
    ptx::BarrierInitFence();
  }
  ptx::AllowSuccessor();
  __syncthreads();
  if constexpr (kPeers > 1) {
    ptx::ClusterArrive();
  }
  ptx::WaitForPredecessors();
  FirstWords ahead;
  const auto share =
      TakeShare<kPeers, Share>(p, plan.keys, Place(p, groups, parts.splits), group == 3, ahead);
  if constexpr (kPeers > 1) {
    ptx::ClusterWait();
  }
  if (group == 0) {
    Scorer scorer(p, plan, share);
    ptx::NamedBarrierSync(kQueriesLoaded, kGroupThreads + kValueThreads);
    scorer.Run(share.turns);
    scorer.Finish(parts.splits > 1 ? LogsOf(parts, share, share.split) : nullptr);
  } else if (group == 3) {
    ptx::LowerRegisters<kGatherRegisters>();
    Gatherer<kPeers, Tiles>(plan.keys, share.keys, p.cache.data, share.first, share.last)
        .Run(share.turns, ahead);
  } else {
    ptx::RaiseRegisters<kValueRegisters>();
    RunValues(p, parts, plan, share, group - 1, kPeers);
  }
  if constexpr (kPeers > 1) {  // a block's barriers live until nobody arrives there
    ptx::ClusterArrive();
    ptx::ClusterWait();
  }
}

// Blocks of pairs that the device runs at once.
int PairedBlocks() {
  static const int blocks = [] {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {2, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(2);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = Plan::kBytes;
    config.attrs = &cluster;
    config.numAttrs = 1;
    int clusters = 0;
    DSA_CUDA_CHECK(cudaFuncSetAttribute(ManyHeadsKernel<2>,
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kBytes));
    DSA_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&clusters, ManyHeadsKernel<2>, &config));
    return clusters * 2;
  }();
  return blocks;
}

}  // namespace

void RunManyHeads(const LatentAttentionParams& params, const AttentionParts& parts,
                  cudaStream_t stream) {
  constexpr int kPairedSplits = 4;  // of more a block has a few turns, and the pair's start shows
  const int groups = HeadGroups(params.q_latent.heads, kHeads);
  const bool fits =
      parts.splits == 1 || params.q_latent.rows * groups * parts.splits <= PairedBlocks();
  if (groups % 2 == 0 && parts.splits <= kPairedSplits && fits) {
    LaunchShares<ManyHeadsKernel<2>, kHeads, kThreads, Plan::kBytes, 2>(params, parts, stream);
  } else {
    LaunchShares<ManyHeadsKernel<1>, kHeads, kThreads, Plan::kBytes>(params, parts, stream);
  }
}

}  // namespace dsa::cuda
