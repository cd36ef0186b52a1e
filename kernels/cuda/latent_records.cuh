// From records of the fp8 latent cache to tiles of half for the tensor cores: what the attention
// kernels with asynchronous copies share.
//
//   ring     [kStages, 32 keys]  656-byte records, brought by asynchronous copies of 16 bytes
//   buffers  [kBuffers]          9 tiles [keys, 64 values], K-major with the 128-byte swizzle:
//                                8 of the latent, times its scales, and 1 of the RoPE key
//
// Four or eight warps gather, each for itself: 8 or 4 keys a turn, in a part of the ring of their
// own.  Whoever waits for a part of a buffer orders what was written there before the tensor cores
// by an AsyncProxyFence of his own, for himself and for whom he signals: here it would wait for
// loads of slots that are under way.  Rows of a tile are keys, so the same bytes are K of the
// scores, and V of the outputs read with keys as the inner dimension.
//
// Halves hold a latent exactly from scales of 2^-15 to 2^7; below, an error of at most 2^-25 comes
// in, above, values from 65520 on become infinite and their row's output NaN.  A latent leaves
// RMSNorm below 22.7 times the largest weight of the norm, so that takes a weight of 2,900.
#pragma once

#include "kernels/cuda/attention_keys.cuh"
#include "kernels/cuda/ptx/mma.cuh"

#include <cstdint>

namespace dsa::cuda {

inline constexpr int kTurnKeys = 32;
inline constexpr int kRoundKeys = 4;  // that a warp converts at once
inline constexpr int kKeyParts = 2;   // a buffer is full in two parts: values [0, 256), the others

// kTurns turns fill a buffer.
template <int kBufferCount, int kTurnCount, int kStageCount, int kGatherWarpCount>
struct KeyTiles {
  static constexpr int kGatherWarps = kGatherWarpCount;
  static constexpr int kWarpKeys = kTurnKeys / kGatherWarps;  // of a turn
  static constexpr int kBuffers = kBufferCount;
  static constexpr int kTurns = kTurnCount;
  static constexpr int kStages = kStageCount;
  static constexpr int kKeys = kTurnKeys * kTurns;
  static constexpr int kTileBytes = kKeys * 128;
  static constexpr int kRopeTile = 8;
  static constexpr int kBufferBytes = (kRopeTile + 1) * kTileBytes;
  static constexpr int kStageBytes = kTurnKeys * LatentBlock::kTokenBytes;
  static constexpr int kPresentWords = kKeys / kWarpKeys;

  // Addresses in shared memory.
  unsigned buffers;  // [kBuffers], at a multiple of 1,024
  unsigned ring;     // [kStages]
  unsigned full;     // [kBuffers, kKeyParts] barriers, on which the gathering warps arrive
  unsigned empty;    // [kBuffers] barriers, on which the readers of V arrive
  unsigned present;  // [kBuffers, kPresentWords], a bit per key, kWarpKeys per word

  static constexpr int kBarriers = kBuffers * (kKeyParts + 1);
  static constexpr int kPresentOffset =
      kBuffers * kBufferBytes + kStages * kStageBytes + kBarriers * 8;
  static constexpr int kBytes = kPresentOffset + kBuffers * kPresentWords * 4;
  static_assert(kPresentOffset % 16 == 0);

  __device__ explicit KeyTiles(unsigned base)
      : buffers(base),
        ring(buffers + kBuffers * kBufferBytes),
        full(ring + kStages * kStageBytes),
        empty(full + kBuffers * kKeyParts * 8),
        present(empty + kBuffers * 8) {}

  // By one thread, before everybody meets.  `readers` are warps of a block.
  __device__ void InitBarriers(int readers) const {
    for (int i = 0; i < kBuffers * kKeyParts; ++i) {
      ptx::BarrierInit(full + i * 8, kGatherWarps * kTurns);
    }
    for (int i = 0; i < kBuffers; ++i) {
      ptx::BarrierInit(empty + i * 8, readers);
    }
  }
  __device__ unsigned Full(int buffer, int part) const {
    return full + (buffer * kKeyParts + part) * 8;
  }
  __device__ unsigned Present(int buffer) const { return present + buffer * kPresentWords * 4; }
};

// Where somebody is among the buffers.
template <int kBuffers>
struct BufferCursor {
  int buffer = 0;
  unsigned phase = 0;
  __device__ void Next() {
    if (++buffer == kBuffers) {
      buffer = 0;
      phase ^= 1U;
    }
  }
};

// Two bfloat16 as two halves.
__device__ inline unsigned HalvesOfBf16(unsigned pair) {
  unsigned halves;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;"
      : "=r"(halves)
      : "f"(__uint_as_float(pair & 0xFFFF0000U)), "f"(__uint_as_float(pair << 16)));
  return halves;
}
__device__ inline uint4 HalvesOfBf16(uint4 values) {
  return {HalvesOfBf16(values.x), HalvesOfBf16(values.y), HalvesOfBf16(values.z),
          HalvesOfBf16(values.w)};
}
__device__ inline unsigned HalvesOf(float low, float high) {
  unsigned halves;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(high), "f"(low));
  return halves;
}
__device__ inline float Exp2(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Eight e4m3 of two words times a scale, which is there twice.
__device__ inline uint4 ScaledHalves(unsigned first, unsigned second, unsigned scale) {
  const auto scaled = [scale](unsigned halves) {
    unsigned product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(halves), "r"(scale));
    return product;
  };
  uint4 halves;
  ToHalves(first, halves.x, halves.y);
  ToHalves(second, halves.z, halves.w);
  return {scaled(halves.x), scaled(halves.y), scaled(halves.z), scaled(halves.w)};
}

// A lane's two columns of a key, 128 values apart.
struct Codes {
  uint4 codes[2];
  float2 scales;
};

// One warp's part of the work: of keys [first, last) in `buffers` buffers, of which the last may
// have turns without keys.
template <typename Tiles>
__device__ void GatherKeys(const Tiles& tiles, const RowKeys& keys, const std::uint8_t* cache,
                           int first, int last, int buffers) {
  constexpr int kRecordBytes = LatentBlock::kTokenBytes;
  constexpr int kPieces = kRecordBytes / 16;
  constexpr int kTailPieces = kPieces - kWarpSize;  // a record is a piece per lane and these
  constexpr int kGatherWarps = Tiles::kGatherWarps;
  constexpr int kWarpKeys = Tiles::kWarpKeys;
  constexpr int kRounds = kWarpKeys / kRoundKeys;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize % kGatherWarps;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  // Eight lanes have 16-byte columns c .. c + 3 of an even key and c + 3 .. c + 6 (mod 8) of the
  // odd one after it, c = 0 or 4.  Records lie 5 * 128 + 16 bytes apart, so these loads meet all
  // banks; and so do the stores of either half of a column, whose place is 2 * (column % 4), by the
  // swizzle xor'ed with the key.
  const int key = lane / 16 * 2 + lane / 4 % 2;
  const int column = (lane % 4 + lane / 8 % 2 * 4 + key % 2 * 3) % 8;
  const int tile_row = warp * kWarpKeys + key;
  const unsigned latent_place =
      column / 4 * Tiles::kTileBytes + tile_row * 128 + ((2 * column % 8) ^ (tile_row % 8)) * 16;
  const unsigned rope_place =
      Tiles::kRopeTile * Tiles::kTileBytes + tile_row * 128 + (column ^ (tile_row % 8)) * 16;
  const unsigned ring = tiles.ring + warp * kWarpKeys * kRecordBytes;
  const int turns = buffers * Tiles::kTurns;

  // Lanes below kWarpKeys have a key of the turn each.
  const auto slot_of = [&](int turn, int own) {
    const int at = first + turn * kTurnKeys + warp * kWarpKeys + own;
    return at < last ? static_cast<int>(keys.Slot(at)) : -1;
  };
  unsigned present = 0;  // kWarpKeys bits a stage
  static_assert(Tiles::kStages * kWarpKeys <= 32);
  const auto copy = [&](int stage, int slot) {
    constexpr unsigned kAll = (1U << kWarpKeys) - 1U;
    const unsigned bits = __ballot_sync(kAllLanes, slot >= 0) & kAll;
    present = (present & ~(kAll << stage * kWarpKeys)) | bits << stage * kWarpKeys;
    __syncwarp();  // everybody has read what lay there
    const auto copy_piece = [&](int copied, int index) {
      const int from = __shfl_sync(kAllLanes, slot, copied);
      if (index < kPieces) {
        ptx::CopyAsync16(ring + stage * Tiles::kStageBytes + copied * kRecordBytes + index * 16,
                         cache + std::int64_t{max(from, 0)} * kRecordBytes + index * 16,
                         from < 0 ? 0 : 16);
      }
    };
#pragma unroll
    for (int i = 0; i < kWarpKeys; ++i) {
      copy_piece(i, lane);
    }
    constexpr int kTails = kWarpKeys * kTailPieces;
#pragma unroll
    for (int i = 0; i < (kTails + kWarpSize - 1) / kWarpSize; ++i) {
      const int tail = i * kWarpSize + lane;
      copy_piece(min(tail / kTailPieces, kWarpKeys - 1),
                 tail < kTails ? kWarpSize + tail % kTailPieces : kPieces);
    }
  };

  // The first turns at once: lane 8 s + k has key k of turn s.
  const int first_slot = slot_of(lane / kWarpKeys, lane % kWarpKeys);
  int next_slot = slot_of(Tiles::kStages, lane % kWarpKeys);
#pragma unroll 1
  for (int stage = 0; stage < Tiles::kStages; ++stage) {
    if (stage < turns) {
      copy(stage, __shfl_sync(kAllLanes, first_slot, stage * kWarpKeys + lane % kWarpKeys));
    }
    ptx::CommitCopies();
  }
  BufferCursor<Tiles::kStages> from;
  BufferCursor<Tiles::kBuffers> to;
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    const int part_turn = turn % Tiles::kTurns;  // within the buffer
    const unsigned record = ring + from.buffer * Tiles::kStageBytes + key * kRecordBytes;
    const unsigned target =
        tiles.buffers + to.buffer * Tiles::kBufferBytes + part_turn * kTurnKeys * 128;
    const auto load = [&](int part, int round) {
      const unsigned source = record + round * kRoundKeys * kRecordBytes;
      return Codes{.codes = {ptx::LoadWords4(source + part * 256 + column * 16),
                             ptx::LoadWords4(source + part * 256 + 128 + column * 16)},
                   .scales = ptx::LoadShared2(source + LatentBlock::Scales(0) + part * 8)};
    };
    ptx::WaitForCopies<Tiles::kStages - 1>();  // a group per turn
    __syncwarp();
    constexpr int kSteps = kKeyParts * kRounds;
    Codes codes[kSteps];  // loaded two steps ahead
    codes[0] = load(0, 0);
    codes[1] = load(1 / kRounds, 1 % kRounds);
    ptx::BarrierWait(tiles.empty + to.buffer * 8, to.phase ^ 1U);
    if (lane == 0) {
      constexpr unsigned kAll = (1U << kWarpKeys) - 1U;
      const unsigned word = present >> from.buffer * kWarpKeys & kAll;
      const unsigned address = tiles.Present(to.buffer) + (part_turn * kGatherWarps + warp) * 4;
      ptx::StoreWord(address, word);
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int part = step / kRounds;
      const int round = step % kRounds;
      const Codes& now = codes[step];
      if (step + 2 < kSteps) {
        codes[step + 2] = load((step + 2) / kRounds, (step + 2) % kRounds);
      }
      uint4 rope = {};
      if (part == 1) {
        rope = ptx::LoadWords4(record + round * kRoundKeys * kRecordBytes + LatentBlock::Rope(0) +
                               column * 16);
      }
      // Four keys on, the swizzle turns bit 6.
      const unsigned latent = (target + latent_place) ^ (round * kRoundKeys * 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float scale = i == 0 ? now.scales.x : now.scales.y;
        const unsigned factor = HalvesOf(scale, scale);
        const unsigned offset = round * kRoundKeys * 128 + (part * 2 + i) * 2 * Tiles::kTileBytes;
        ptx::StoreWords4(latent + offset, ScaledHalves(now.codes[i].x, now.codes[i].y, factor));
        ptx::StoreWords4((latent ^ 16) + offset,
                         ScaledHalves(now.codes[i].z, now.codes[i].w, factor));
      }
      if (part == 1) {
        ptx::StoreWords4(
            ((target + rope_place) ^ (round * kRoundKeys * 16)) + round * kRoundKeys * 128,
            HalvesOfBf16(rope));
      }
      if (round + 1 == kRounds) {
        __syncwarp();
        if (lane == 0) {
          ptx::BarrierArrive(tiles.Full(to.buffer, part));
        }
      }
    }
    if (turn + Tiles::kStages < turns) {
      copy(from.buffer, next_slot);
    }
    ptx::CommitCopies();
    next_slot = slot_of(turn + Tiles::kStages + 1, lane % kWarpKeys);
    from.Next();
    if (part_turn + 1 == Tiles::kTurns) {
      to.Next();
    }
  }
}

}  // namespace dsa::cuda
