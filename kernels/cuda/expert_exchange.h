// Where ranks with rows of their own exchange them and what experts gave (expert_dispatch.cu,
// expert_combine.cu).  For kernels/cuda/ only.
//
// Each rank has an ExchangeBox on its device, which others write to and it alone reads.  Few rows
// go one way over the link, without a barrier:
//
//   routing   a row's ids, each with the number of the meeting beside it, from every rank to all
//   values    16 bytes of a row or of a contribution.  They are there once none of their words is
//             kAbsent, with which the reader fills the place again: no number, no second half
//
// Rows and routing alternate between two halves: whoever writes half h of meeting e + 2 has had
// everybody's routing of meeting e + 1, sent behind all that its sender had read of meeting e.
// Contributions need one place only, since a Dispatch lies between each two Combines.
#pragma once

#include "kernels/comm/collectives.h"
#include "kernels/cuda/peers.h"

#include <cstdint>

#include <vector_types.h>

namespace dsa::cuda {

// No float32 and no two bfloat16 that an op computes, but a NaN, which is sent as another one.
inline constexpr unsigned kAbsent = 0xFFFFFFFFU;

inline constexpr std::int64_t kExchangeRowsMax = 256;     // of a rank, that go one way
inline constexpr std::int64_t kExchangeChoicesMax = 32;   // of a row: a lane each
inline constexpr std::int64_t kExchangeBlocksMax = 1024;  // of a Dispatch
inline constexpr std::int64_t kExchangeRowBytes = kExchangeRowsMax * 7168 * 2;   // of a rank
inline constexpr std::int64_t kExchangePartBytes = kExchangeRowsMax * 7168 * 4;  // likewise
inline constexpr std::int64_t kExchangeResultBytes = kExchangeRowsMax * 8 * 7168 * 2;

// A rank's box: where its parts begin, in bytes.
class ExchangeLayout final {
 public:
  __host__ __device__ explicit ExchangeLayout(int ranks) : ranks_(ranks) {}

  // [kExchangeBlocksMax] of unsigned, all alike: Dispatches so far that went one way.  Zero at
  // first, as is the routing.
  static constexpr std::int64_t Meetings() { return 0; }
  // uint4 of [2, ranks, kExchangeRowsMax, kExchangeChoicesMax]: id, number, weight, number.
  __host__ __device__ std::int64_t Routing(unsigned half, int rank) const {
    return kMeetingBytes + (std::int64_t{half} * ranks_ + rank) * kRoutingBytes;
  }
  // Of [2, ranks]; kAbsent at first.
  __host__ __device__ std::int64_t Rows(unsigned half, int rank) const {
    return Routing(2, 0) + (std::int64_t{half} * ranks_ + rank) * kExchangeRowBytes;
  }
  // Contributions by pair of a row and a choice of this rank, or parts: [ranks] of
  // kExchangePartBytes; kAbsent at first.
  __host__ __device__ std::int64_t Results() const { return Rows(2, 0); }
  __host__ __device__ std::int64_t Parts(int rank) const {
    return Results() + rank * kExchangePartBytes;
  }
  __host__ __device__ std::int64_t bytes() const {
    const std::int64_t parts_end = Parts(ranks_);
    const std::int64_t results_end = Results() + kExchangeResultBytes;
    return parts_end > results_end ? parts_end : results_end;
  }

 private:
  static constexpr std::int64_t kMeetingBytes = kExchangeBlocksMax * 4;
  static constexpr std::int64_t kRoutingBytes = kExchangeRowsMax * kExchangeChoicesMax * 16;
  int ranks_;
};

// What a kernel knows of the exchange.
struct ExchangeTable {
  PeerTable peers;
  std::uint8_t* boxes[kPeersMax];
  ExpertRange experts[kPeersMax];  // of each rank
  int copies;
};

// Of a backend that is a rank among those that have rows of their own.
struct ExchangeSeat {
  ExchangeTable table{};
  bool has_experts = false;     // those of all ranks are known, since the first Dispatch
  bool has_dispatched = false;  // a Combine is due
};

}  // namespace dsa::cuda
