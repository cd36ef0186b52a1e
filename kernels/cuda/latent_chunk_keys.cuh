// How keys come into the rings of latent_attention_chunks.cu.
#pragma once

#include "kernels/cuda/latent_chunk.cuh"
#include "kernels/cuda/latent_rows.h"

namespace dsa::cuda::chunk {

// 128 bytes into the L2 cache.
__device__ inline void PrefetchLine(const void* line) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
}

// Brings keys: a warp 16 of a turn.  Eight lanes have 128 bytes of a key, so a copy instruction
// meets four keys, and a thread the same four in every tile.
class Gatherer final {
 public:
  __device__ Gatherer(const Items& items, const Plan& plan, const LatentRows& latents)
      : items_(items),
        plan_(plan),
        latents_(latents),
        lane_(static_cast<int>(threadIdx.x) % kWarpSize),
        warp_(static_cast<int>(threadIdx.x) / kWarpSize % kGroupWarps) {}

  __device__ void Run() {
    item_ = Items::First();
    source_ = SourceOf(item_);
    next_ = SourceOf(Items::Next(item_));
    Turn now = TakeTurn();
    int place = PlaceOf(now);
    Turn next = TakeTurn();
#pragma unroll 1
    while (now.exists) {
      const int next_place = PlaceOf(next);
      const Turn later = TakeTurn();
      Bring(now.is_converted, place);
      if (next.exists && !next.is_converted) {
        PrefetchRecords(next_place);
      }
      now = next;
      place = next_place;
      next = later;
    }
  }

 private:
  static constexpr int kWarpKeys = kKeyBlock / kGroupWarps;
  static constexpr int kRounds = kWarpKeys / 4;

  struct Source {
    RowKeys keys;
    bool is_converted;
  };
  struct Turn {
    int slot;  // of the lane's key; negative where there is none
    bool is_converted;
    bool exists;
  };

  __device__ Source SourceOf(int item) const {
    if (item >= items_.count) {
      return {.keys = {.table = nullptr, .slots = nullptr, .count = 0}, .is_converted = false};
    }
    const LatentAttentionParams& p = items_.p;
    const std::int64_t row = items_.Row(item);
    return {.keys = KeysOf(p.rows, p.selection, row),
            .is_converted = latents_.first_blocks[p.rows.sequences.data[row]] >= 0};
  }

  // The turns of all items in order.  What is loaded for one is used two turns later.
  __device__ Turn TakeTurn() {
    while (turn_ == TurnsOf(source_.keys.count)) {
      if (item_ >= items_.count) {
        return {.slot = -1, .is_converted = false, .exists = false};
      }
      item_ = Items::Next(item_);
      turn_ = 0;
      source_ = next_;
      next_ = SourceOf(Items::Next(item_));
      PrefetchQueries(item_);
    }
    const int at = turn_ * kKeyBlock + warp_ * kWarpKeys + lane_ % kWarpKeys;
    ++turn_;
    return {.slot = at < source_.keys.count ? static_cast<int>(source_.keys.Slot(at)) : -1,
            .is_converted = source_.is_converted,
            .exists = true};
  }

  // Where the lane's key lies, in rows or, if it is not converted, in the cache.
  __device__ int PlaceOf(const Turn& turn) const {
    return turn.is_converted && turn.slot >= 0
               ? latents_.places[turn.slot / kTokensPerBlock] * kTokensPerBlock +
                     turn.slot % kTokensPerBlock
               : turn.slot;
  }

  // The records of the warp's keys into the L2 cache.  (Of rows, which other blocks have mostly
  // brought, that takes more than it gives.)
  __device__ void PrefetchRecords(int slot) const {
    constexpr int kLines = LatentBlock::kTokenBytes / 128 + 1;
    const auto* cache = static_cast<const std::uint8_t*>(items_.p.cache.data);
#pragma unroll 1
    for (int first = 0; first < kWarpKeys * kLines; first += kWarpSize) {
      const int line = first + lane_;
      const int from = __shfl_sync(kAllLanes, slot, line / kLines % kWarpKeys);
      if (from >= 0) {
        const int within = min(line % kLines * 128, LatentBlock::kTokenBytes - 16);
        PrefetchLine(cache + std::int64_t{from} * LatentBlock::kTokenBytes + within);
      }
    }
  }

  // An item's queries into the L2 cache.
  __device__ void PrefetchQueries(int item) const {
    if (item >= items_.count) {
      return;
    }
    const LatentAttentionParams& p = items_.p;
    const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
    const auto* latent = static_cast<const __nv_bfloat16*>(p.q_latent.data) +
                         items_.Row(item) * p.q_latent.row_stride +
                         items_.FirstHead(item) * p.q_latent.head_stride;
    const auto* rope = static_cast<const __nv_bfloat16*>(p.q_rope.data) +
                       items_.Row(item) * p.q_rope.row_stride +
                       items_.FirstHead(item) * p.q_rope.head_stride;
    const int heads = items_.Heads(item);
#pragma unroll 1
    for (int i = thread; i < heads * (kSteps / 4); i += kGroupThreads) {
      const int head = i / (kSteps / 4);
      const int line = i % (kSteps / 4);
      PrefetchLine(line < kLatentValues / 64 ? latent + head * p.q_latent.head_stride + line * 64
                                             : rope + head * p.q_rope.head_stride);
    }
  }

  __device__ void Bring(bool is_converted, int place) {
    BringPart<0>(is_converted, place);
    ptx::BarrierWait(plan_.rope_empty + rope_.buffer * 8, rope_.phase ^ 1U);
    BringPart<1>(is_converted, place);
    rope_.Next();
  }

  template <int kPart>
  __device__ void BringPart(bool is_converted, int place) {
    ptx::BarrierWait(plan_.part_empty + part_.buffer * 8, part_.phase ^ 1U);
    const unsigned full = plan_.part_full + part_.buffer * 8;
    if (is_converted) {
      CopyRows<kPart>(place);
      ptx::CopyAsyncArrive(full);
    } else {
      ConvertRecords<kPart>(place);
      ptx::BarrierArrive(full);
    }
    part_.Next();
  }

  // Of the thread's piece of key `round`, in a tile.
  __device__ unsigned PieceOf(int round) const {
    const int key = round * 4 + lane_ / 8;
    return (warp_ * kWarpKeys + key) * 128 + ((lane_ ^ key) % 8) * 16;
  }

  template <int kPart>
  __device__ void CopyRows(int place) const {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int from = __shfl_sync(kAllLanes, place, round * 4 + lane_ / 8);
      const std::uint8_t* source = latents_.rows + std::int64_t{max(from, 0)} * kLatentRowBytes +
                                   kPart * kPartTiles * 128 + lane_ % 8 * 16;
      const int bytes = from < 0 ? 0 : 16;
      const unsigned target = plan_.Part(part_.buffer) + PieceOf(round);
#pragma unroll
      for (int tile = 0; tile < kPartTiles; ++tile) {
        ptx::CopyAsync16(target + tile * kTileBytes, source + tile * 128, bytes);
      }
      if constexpr (kPart == 1) {
        ptx::CopyAsync16(plan_.Rope(rope_.buffer) + PieceOf(round), source + kPartTiles * 128,
                         bytes);
      }
    }
  }

  __device__ const std::uint8_t* RecordOf(int place, int round) const {
    const int from = __shfl_sync(kAllLanes, place, round * 4 + lane_ / 8);
    return from < 0 ? nullptr
                    : static_cast<const std::uint8_t*>(items_.p.cache.data) +
                          std::int64_t{from} * LatentBlock::kTokenBytes;
  }

  // Two rounds at once, for loads on their way.
  template <int kPart>
  __device__ void ConvertRecords(int place) const {
    constexpr int kAtOnce = 2;
#pragma unroll 1
    for (int first = 0; first < kRounds; first += kAtOnce) {
      uint2 codes[kAtOnce][kPartTiles];
      float2 scales[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const std::uint8_t* record = RecordOf(place, first + i);
        scales[i] = make_float2(0.0F, 0.0F);
#pragma unroll
        for (int tile = 0; tile < kPartTiles; ++tile) {
          codes[i][tile] = make_uint2(0, 0);
        }
        if (record != nullptr) {
          const std::uint8_t* own = record + kPart * kPartTiles * 64 + lane_ % 8 * 8;
#pragma unroll
          for (int tile = 0; tile < kPartTiles; ++tile) {
            codes[i][tile] = *reinterpret_cast<const uint2*>(own + tile * 64);
          }
          scales[i] = *reinterpret_cast<const float2*>(record + LatentBlock::Scales(0) + kPart * 8);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const unsigned target = plan_.Part(part_.buffer) + PieceOf(first + i);
#pragma unroll
        for (int tile = 0; tile < kPartTiles; ++tile) {
          const float scale = tile < kPartTiles / 2 ? scales[i].x : scales[i].y;
          ptx::StoreWords4(
              target + tile * kTileBytes,
              ScaledHalves(codes[i][tile].x, codes[i][tile].y, HalvesOf(scale, scale)));
        }
      }
    }
    if constexpr (kPart == 1) {
      ConvertRopes(place);
    }
  }

  __device__ void ConvertRopes(int place) const {
    uint4 values[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const std::uint8_t* record = RecordOf(place, round);
      values[round] = make_uint4(0, 0, 0, 0);
      if (record != nullptr) {
        values[round] =
            *reinterpret_cast<const uint4*>(record + LatentBlock::Rope(0) + lane_ % 8 * 16);
      }
    }
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      ptx::StoreWords4(plan_.Rope(rope_.buffer) + PieceOf(round), HalvesOfBf16(values[round]));
    }
  }

  const Items& items_;
  const Plan& plan_;
  const LatentRows& latents_;
  int lane_;
  int warp_;
  int item_ = 0;  // whose turns are taken
  int turn_ = 0;
  Source source_{};
  Source next_{};
  PartCursor part_;
  RopeCursor rope_;
};

}  // namespace dsa::cuda::chunk
