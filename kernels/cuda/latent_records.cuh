// From records of the fp8 latent cache to tiles of half for the tensor cores: what the attention
// kernels with asynchronous copies share.
//
//   ring     [kStages, 32 keys]  656-byte records, brought by asynchronous copies of 16 bytes
//   buffers  [kBuffers]          9 tiles [keys, 64 values], K-major with the 128-byte swizzle:
//                                8 of the latent, times its scales, and 1 of the RoPE key
//
// Four or eight warps gather, each for itself: 8 or 4 keys a turn, in a part of the ring of their
// own.  Where two blocks of a cluster attend to the same keys, each gathers half of every buffer's
// and copies its tiles to the peer, where the bytes count on the same barriers.
//
// Whoever waits for a part of a buffer orders what was written there before the tensor cores by an
// AsyncProxyFence of his own, for himself and for whom he signals: here it would wait for loads of
// slots that are under way.  Rows of a tile are keys, so the same bytes are K of the scores, and V
// of the outputs read with keys as the inner dimension.
//
// Halves hold a latent exactly from scales of 2^-15 to 2^7; below, an error of at most 2^-25 comes
// in, above, values from 65520 on become infinite and their row's output NaN.  A latent leaves
// RMSNorm below 22.7 times the largest weight of the norm, so that takes a weight of 2,900.
#pragma once

#include "kernels/cuda/attention_keys.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/ptx/peer_block.cuh"

#include <cstdint>

namespace dsa::cuda {

inline constexpr int kTurnKeys = 32;
inline constexpr int kRoundKeys = 4;  // that a warp converts at once
inline constexpr int kKeyParts = 2;   // a buffer is full in two parts: values [0, 256), the others

// kTurns turns fill a buffer; of `peers` blocks, 1 or kTurns, each gathers kTurns / peers of them.
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
  unsigned empty;    // [kBuffers] barriers, on which the readers of V of all peers arrive
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
  __device__ void InitBarriers(int readers, int peers) const {
    for (int i = 0; i < kBuffers * kKeyParts; ++i) {
      ptx::BarrierInit(full + i * 8, kGatherWarps * kTurns / peers);
    }
    for (int i = 0; i < kBuffers; ++i) {
      ptx::BarrierInit(empty + i * 8, readers * peers);
    }
  }
  __device__ unsigned Full(int buffer, int part) const {
    return full + (buffer * kKeyParts + part) * 8;
  }
  __device__ unsigned Present(int buffer) const { return present + buffer * kPresentWords * 4; }
  // By a warp that reads no more of V in a buffer: lane 0 tells the own block, lane 1 the peer.
  __device__ void Release(int buffer, int lane, int peers) const {
    if (lane == 0) {
      ptx::BarrierArrive(empty + buffer * 8);
    } else if (lane < peers) {
      ptx::BarrierArriveInBlock(ptx::AddressInBlock(empty + buffer * 8, ptx::ClusterRank() ^ 1U));
    }
  }
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

// The words of a warp's first keys, a lane each, asked for before it is known how many keys a row
// has.
struct FirstWords {
  const std::int32_t* from = nullptr;
  std::int32_t word = 0;
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
__device__ inline float2 FloatsOf(unsigned halves) {
  float2 floats;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.f32.f16 %0, low;\n"
      "cvt.f32.f16 %1, high;\n"
      "}\n"
      : "=f"(floats.x), "=f"(floats.y)
      : "r"(halves));
  return floats;
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

// One gathering warp.  kPeers blocks of a cluster have the same keys, and this one's turns are
// every kPeers-th.
template <int kPeers, typename Tiles>
class Gatherer final {
 public:
  // Keys [first, last).  Lanes unsigned or not: the machine code of either is the faster for one.
  __device__ Gatherer(const Tiles& tiles, const RowKeys& keys, const std::uint8_t* cache, int first,
                      int last)
      : tiles_(tiles),
        keys_(keys),
        cache_(cache),
        last_(last),
        lane_(kPeers == 1 ? static_cast<int>(threadIdx.x % kWarpSize)
                          : static_cast<int>(threadIdx.x) % kWarpSize),
        warp_(kPeers == 1 ? static_cast<int>(threadIdx.x / kWarpSize % Tiles::kGatherWarps)
                          : static_cast<int>(threadIdx.x) / kWarpSize % Tiles::kGatherWarps),
        rank_(kPeers == 1 ? 0 : static_cast<int>(ptx::ClusterRank())),
        first_(first + rank_ * kTurnKeys + warp_ * kWarpKeys),
        ring_(tiles.ring + warp_ * kWarpKeys * kRecordBytes),
        to_peer_(kPeers == 1 ? 0 : ptx::AddressInBlock(tiles.buffers, rank_ ^ 1U) - tiles.buffers) {
  }

  __device__ FirstWords LoadFirst() const {
    FirstWords words{.from = Word(lane_ / kWarpKeys)};
    // Stays where it is, above what its place does not depend on.
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(words.word) : "l"(words.from));
    return words;
  }

  // The last of `buffers` buffers may have turns without keys.
  __device__ void Run(int buffers, const FirstWords& ahead = {}) {
    const int turns = buffers * kOwnTurns;
    if (turns == 0) {
      return;
    }
    // The first turns at once: lane kWarpKeys s + k has key k of turn s.
    const std::int32_t* const words = Word(lane_ / kWarpKeys);
    const int first_slot = SlotFrom(words == ahead.from ? ahead.word : *words, lane_ / kWarpKeys);
    std::int32_t word = *Word(Tiles::kStages);  // nothing uses it before the next turn
#pragma unroll 1
    for (int stage = 0; stage < Tiles::kStages; ++stage) {
      if (stage < turns) {
        Copy(stage, __shfl_sync(kAllLanes, first_slot, stage * kWarpKeys + lane_ % kWarpKeys));
      }
      ptx::CommitCopies();
    }
#pragma unroll 1
    for (int turn = 0; turn < turns; ++turn) {
      ptx::WaitForCopies<Tiles::kStages - 1>();  // a group per turn
      __syncwarp();
      Convert(kPeers == 1 ? turn % kOwnTurns : rank_);
      if (turn + Tiles::kStages < turns) {
        Copy(from_.buffer, SlotFrom(word, turn + Tiles::kStages));
      }
      ptx::CommitCopies();
      word = *Word(turn + Tiles::kStages + 1);
      from_.Next();
      if ((turn + 1) % kOwnTurns == 0) {
        to_.Next();
      }
    }
  }

 private:
  static_assert(kPeers == 1 || (kPeers == 2 && Tiles::kTurns == 2));
  static constexpr int kOwnTurns = Tiles::kTurns / kPeers;  // of a buffer
  static constexpr int kWarpKeys = Tiles::kWarpKeys;
  static constexpr unsigned kAllKeys = (1U << kWarpKeys) - 1U;
  static constexpr int kRounds = kWarpKeys / kRoundKeys;
  static constexpr int kRecordBytes = LatentBlock::kTokenBytes;
  static constexpr int kPieces = kRecordBytes / 16;
  static constexpr int kTailPieces = kPieces - kWarpSize;  // a record is a piece per lane and these
  static constexpr int kPartTiles = Tiles::kRopeTile / kKeyParts;
  static_assert(Tiles::kStages * kWarpKeys <= 32, "a bit per key, and a lane at the start");

  // A lane's two columns of a key, 128 values apart.
  struct Codes {
    uint4 codes[2];
    float2 scales;
  };

  // The lane's key of the warp's, which every kWarpKeys-th lane has, the word that tells its slot,
  // and the slot, -1 beyond the last key.
  __device__ int KeyOf(int turn) const {
    return first_ + turn * kPeers * kTurnKeys + lane_ % kWarpKeys;
  }
  __device__ const std::int32_t* Word(int turn) const {
    return keys_.Word(min(KeyOf(turn), last_ - 1));
  }
  __device__ int SlotFrom(std::int32_t word, int turn) const {
    const int key = KeyOf(turn);
    return key < last_ ? static_cast<int>(keys_.SlotFrom(word, key)) : -1;
  }

  // A turn's records to the ring; `slot` as SlotFrom gives it.
  __device__ void Copy(int stage, int slot) {
    const unsigned bits = __ballot_sync(kAllLanes, slot >= 0) & kAllKeys;
    present_ = (present_ & ~(kAllKeys << stage * kWarpKeys)) | bits << stage * kWarpKeys;
    __syncwarp();  // everybody has read what lay there
    const auto copy_piece = [&](int copied, int index) {
      const int from = __shfl_sync(kAllLanes, slot, copied);
      if (index < kPieces) {
        ptx::CopyAsync16(ring_ + stage * Tiles::kStageBytes + copied * kRecordBytes + index * 16,
                         cache_ + std::int64_t{max(from, 0)} * kRecordBytes + index * 16,
                         from < 0 ? 0 : 16);
      }
    };
#pragma unroll
    for (int i = 0; i < kWarpKeys; ++i) {
      copy_piece(i, lane_);
    }
    constexpr int kTails = kWarpKeys * kTailPieces;
#pragma unroll
    for (int i = 0; i < (kTails + kWarpSize - 1) / kWarpSize; ++i) {
      const int tail = i * kWarpSize + lane_;
      copy_piece(min(tail / kTailPieces, kWarpKeys - 1),
                 tail < kTails ? kWarpSize + tail % kTailPieces : kPieces);
    }
  }

  // Of every two tiles, eight lanes have 16-byte columns c .. c + 3 of an even key and c + 3 .. c +
  // 6 (mod 8) of the odd one after it, c = 0 or 4.  Records lie 5 * 128 + 16 bytes apart, so loads
  // of these meet all banks; and so do the stores of either half of a column, whose place is 2 *
  // (column % 4), by the swizzle xor'ed with the key.
  __device__ int Key() const {
    return lane_ / 16 * 2 + lane_ / 4 % 2;
  }
  __device__ int Column() const {
    return (lane_ % 4 + lane_ / 8 % 2 * 4 + Key() % 2 * 3) % 8;
  }

  // Of the first key of a round, and the warp's first row of a tile.
  __device__ unsigned Record(int round) const {
    return ring_ + from_.buffer * Tiles::kStageBytes + round * kRoundKeys * kRecordBytes;
  }
  __device__ unsigned Target(int part_turn) const {
    return tiles_.buffers + to_.buffer * Tiles::kBufferBytes +
           (part_turn * kTurnKeys + warp_ * kWarpKeys) * 128;
  }

  __device__ Codes Load(int part, int round) const {
    const unsigned record = Record(round) + Key() * kRecordBytes;
    return {.codes = {ptx::LoadWords4(record + part * 256 + Column() * 16),
                      ptx::LoadWords4(record + part * 256 + 128 + Column() * 16)},
            .scales = ptx::LoadShared2(record + LatentBlock::Scales(0) + part * 8)};
  }

  __device__ void StoreLatents(const Codes& codes, unsigned target, int part, int round) const {
    // Rows of the warp start at a multiple of 4, of a round 4 apart: a swizzle's bit 6.
    const int row = warp_ * kWarpKeys % 8 + Key();
    const unsigned place =
        Column() / 4 * Tiles::kTileBytes + Key() * 128 + ((2 * Column() % 8) ^ row % 8) * 16;
    const unsigned own = (target + place) ^ (round * kRoundKeys * 16);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float scale = i == 0 ? codes.scales.x : codes.scales.y;
      const unsigned factor = HalvesOf(scale, scale);
      const unsigned offset = round * kRoundKeys * 128 + (part * 2 + i) * 2 * Tiles::kTileBytes;
      ptx::StoreWords4(own + offset, ScaledHalves(codes.codes[i].x, codes.codes[i].y, factor));
      ptx::StoreWords4((own ^ 16) + offset,
                       ScaledHalves(codes.codes[i].z, codes.codes[i].w, factor));
    }
  }

  // Eight lanes have a row.  To the peer at once: a copy might still read when powers take the
  // place of this tile.
  __device__ void StoreRope(unsigned target, int round) const {
    const int key = lane_ / 8;
    const uint4 halves = HalvesOfBf16(ptx::LoadWords4(Record(round) + key * kRecordBytes +
                                                      LatentBlock::Rope(0) + lane_ % 8 * 16));
    const int row = warp_ * kWarpKeys % 8 + round * kRoundKeys + key;
    const unsigned address = target + Tiles::kRopeTile * Tiles::kTileBytes +
                             (round * kRoundKeys + key) * 128 + (lane_ % 8 ^ row % 8) * 16;
    ptx::StoreWords4(address, halves);
    if constexpr (kPeers == 2) {
      ptx::StoreWords4InBlock(address + to_peer_, halves,
                              tiles_.Full(to_.buffer, kKeyParts - 1) + to_peer_);
    }
  }

  __device__ void StorePresent(int part_turn) const {
    const unsigned word = present_ >> from_.buffer * kWarpKeys & kAllKeys;
    const unsigned address =
        tiles_.Present(to_.buffer) + (part_turn * Tiles::kGatherWarps + warp_) * 4;
    ptx::StoreWord(address, word);
    if constexpr (kPeers == 2) {
      ptx::StoreWordInBlock(address + to_peer_, word, tiles_.Full(to_.buffer, 0) + to_peer_);
    }
  }

  // The warp has stored its rows of a part.
  __device__ void Publish(int part, unsigned target) const {
    if constexpr (kPeers == 1) {
      __syncwarp();
      if (lane_ == 0) {
        ptx::BarrierArrive(tiles_.Full(to_.buffer, part));
      }
    } else {
      constexpr unsigned kTileRows = kWarpKeys * 128;  // bytes, in one piece
      ptx::AsyncProxyFence();
      __syncwarp();
      if (lane_ < kPartTiles) {
        const unsigned rows = target + (part * kPartTiles + lane_) * Tiles::kTileBytes;
        ptx::CopyBulkToBlock(rows + to_peer_, rows, kTileRows,
                             tiles_.Full(to_.buffer, part) + to_peer_);
      }
      if (lane_ == 0) {  // the peer's same warp sends as much
        ptx::BarrierExpect(tiles_.Full(to_.buffer, part),
                           kPartTiles * kTileRows + (part == 0 ? 4 : kTileRows));
      }
    }
  }

  // A turn's records to its rows of a buffer.
  __device__ void Convert(int part_turn) const {
    constexpr int kSteps = kKeyParts * kRounds;
    const unsigned target = Target(part_turn);
    Codes codes[kSteps];  // loaded two steps ahead
    codes[0] = Load(0, 0);
    codes[1] = Load(1 / kRounds, 1 % kRounds);
    ptx::BarrierWait(tiles_.empty + to_.buffer * 8, to_.phase ^ 1U);
    if (lane_ == 0) {
      StorePresent(part_turn);
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int part = step / kRounds;
      const int round = step % kRounds;
      if (step + 2 < kSteps) {
        codes[step + 2] = Load((step + 2) / kRounds, (step + 2) % kRounds);
      }
      StoreLatents(codes[step], target, part, round);
      if (part + 1 == kKeyParts) {
        StoreRope(target, round);
      }
      if (round + 1 == kRounds) {
        Publish(part, target);
      }
    }
  }

  const Tiles& tiles_;
  const RowKeys& keys_;
  const std::uint8_t* cache_;
  int last_;
  int lane_;
  int warp_;
  int rank_;
  int first_;             // the warp's first key
  unsigned ring_;         // the warp's part of its first stage
  unsigned to_peer_;      // from an address to the same one in the peer
  unsigned present_ = 0;  // kWarpKeys bits per stage
  BufferCursor<Tiles::kStages> from_;
  BufferCursor<Tiles::kBuffers> to_;
};

}  // namespace dsa::cuda
