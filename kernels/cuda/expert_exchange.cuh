// What Dispatch and Combine of ranks that see each other's memory share (expert_exchange.h).
#pragma once

#include "common/check.h"
#include "kernels/comm/collectives.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/expert_exchange.h"
#include "kernels/cuda/peer_meeting.cuh"

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace dsa::cuda {

inline constexpr int kExchangeThreads = 224;  // of 16 bytes each: a quarter of 7168 bfloat16
inline constexpr int kExchangeWarps = kExchangeThreads / kWarpSize;
inline constexpr int kLineBytes = 16;
inline constexpr int kRowThreads = 512;
inline constexpr int kRowWarps = kRowThreads / kWarpSize;
inline constexpr int kChoicesMax = static_cast<int>(kExchangeChoicesMax);

// Rows, experts and extents that both ops have.
struct ExchangeRows {
  Matrix<const std::int32_t> experts;  // [T, K]
  const std::int32_t* live_rows;
  std::int64_t row_bytes;  // of D values

  __device__ int live() const {
    return live_rows == nullptr ? static_cast<int>(experts.rows) : *live_rows;
  }
  // Of a choice of this rank's rows; -1: none.
  __device__ std::int32_t ExpertOf(int t, int k) const {
    return t < live() ? experts.Row(t)[k] : -1;
  }
};

__device__ inline bool Has(const ExchangeTable& table, int rank, std::int32_t expert) {
  const ExpertRange& range = table.experts[rank];
  return expert >= range.first && expert < range.first + range.count;
}
// The rank that has an expert; -1 of none.
__device__ inline int OwnerOf(const ExchangeTable& table, std::int32_t expert) {
  int owner = -1;
#pragma unroll
  for (int rank = 0; rank < kPeersMax; ++rank) {
    if (rank < table.peers.ranks && Has(table, rank, expert)) {
      owner = rank;
    }
  }
  if (expert >= 0 && owner < 0) {
    __trap();  // an expert on no rank
  }
  return owner;
}
__device__ inline int SenderOf(const ExchangeTable& table, int rank) {
  return rank / table.copies;
}
__device__ inline int Senders(const ExchangeTable& table) {
  return table.peers.ranks / table.copies;
}

// Values as they are sent.
__device__ inline uint4 Present(uint4 value) {
  constexpr unsigned kOtherNan = 0xFFFF7FFFU;  // of float32, and of both bfloat16
  value.x = value.x == kAbsent ? kOtherNan : value.x;
  value.y = value.y == kAbsent ? kOtherNan : value.y;
  value.z = value.z == kAbsent ? kOtherNan : value.z;
  value.w = value.w == kAbsent ? kOtherNan : value.w;
  return value;
}
__device__ inline bool IsPresent(const uint4& value) {
  return value.x != kAbsent && value.y != kAbsent && value.z != kAbsent && value.w != kAbsent;
}
// What a place has until a line comes.
__device__ inline uint4 Empty() {
  return make_uint4(kAbsent, kAbsent, kAbsent, kAbsent);
}
// By a whole warp, until done() is true of all its lanes, or the group has failed: then false.
template <typename Done>
__device__ inline bool WaitForWarp(const PeerTable& peers, const Done& done) {
  constexpr int kLooksBetween = 4096;  // the word of a failure is across PCIe
  while (true) {
    for (int look = 0; look < kLooksBetween; ++look) {
      const bool is_done = done();
      if (__all_sync(kAllLanes, is_done)) {
        return true;
      }
    }
    if (__any_sync(kAllLanes, ptx::LoadRelaxed(peers.aborted) != 0)) {
      return false;
    }
  }
}

inline void CheckLines(const char* op, const ConstAnyMatrix& matrix) {
  DSA_CHECK(reinterpret_cast<std::uintptr_t>(matrix.data) % kLineBytes == 0 &&
                matrix.row_stride * SizeOf(matrix.type) % kLineBytes == 0,
            "{}: [{}, {}] of stride {} at {:#x}, expected rows that are 16-byte aligned",
            std::string_view(op), matrix.rows, matrix.cols, matrix.row_stride,
            reinterpret_cast<std::uintptr_t>(matrix.data));
}
inline bool HasLines(std::int64_t row_bytes) {
  return row_bytes % kLineBytes == 0;
}
inline std::int64_t LineChunks(std::int64_t row_bytes) {
  const std::int64_t lines = row_bytes / kLineBytes;
  return (lines + kExchangeThreads - 1) / kExchangeThreads;
}
inline dim3 LineGrid(std::int64_t tokens, std::int64_t row_bytes) {
  return {static_cast<unsigned>(LineChunks(row_bytes)), static_cast<unsigned>(tokens)};
}
inline unsigned RowBlocks(std::int64_t warps) {
  return static_cast<unsigned>(
      std::clamp<std::int64_t>((warps + kRowWarps - 1) / kRowWarps, 1, kMeetingBlocks));
}

// The same on all ranks: it follows from extents.
inline bool RowsGoOneWay(const DispatchExtents& extents, std::int64_t row_bytes) {
  return HasLines(row_bytes) && extents.tokens <= kExchangeRowsMax &&
         extents.experts_per_token <= kExchangeChoicesMax &&
         extents.tokens * row_bytes <= kExchangeRowBytes &&
         extents.tokens * LineChunks(row_bytes) <= kExchangeBlocksMax;
}

}  // namespace dsa::cuda
