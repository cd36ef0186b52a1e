// Ranks that are GPUs of one process and see each other's memory: where their collectives meet.
// For kernels/cuda/ only.
//
// Each rank has a Mailbox on its device.  Others write into it what they have for this rank, and a
// rank waits only at its own, so that nobody polls across a link.  All counters lie on the devices:
// a recorded graph meets others anew with every replay.  No multicast; hosts wait only to queue
// what is not recorded.
//
//   Lines     what a rank adds goes to all others value by value, each 8 bytes with the number of
//             the meeting beside the value: whoever sees the number has the value, and nothing else
//             is to be waited for.  Twice the bytes, one way over the link: for few rows.
//   Meeting   block b of each rank tells block b of all others where its operands lie, and later
//             that it has read and written what it must.
//
// Every block counts its meetings by itself, and the same on all ranks, because the grids of a call
// follow from its extents alone.  Lines alternate between two halves: a rank that writes meeting
// e + 2 has received e + 1 from all, which they send after they have read e.
#pragma once

#include "kernels/comm/thread_group.h"

#include <cstdint>
#include <memory>

#include <vector_types.h>

namespace dsa::cuda {

inline constexpr int kPeersMax = 8;
inline constexpr int kMeetingBlocks = 64;
inline constexpr int kLineBlocks = 128;
inline constexpr int kLineThreads = 256;
inline constexpr int kLinesPerThread = 4;
inline constexpr int kBlockLines = kLineThreads * kLinesPerThread;
inline constexpr int kLines = kLineBlocks * kBlockLines;
inline constexpr int kLineValues = 2;  // of float32 per line of 16 bytes

// Zero at first.
struct Mailbox {
  // Written by this rank: meetings so far.
  unsigned meetings[kMeetingBlocks];
  unsigned line_meetings[kLineBlocks];
  // Written by others: the first operand; 48 bits of the second over 16 of the meeting's number.
  std::uint64_t operands[kMeetingBlocks][kPeersMax][2];
  unsigned finished[kMeetingBlocks][kPeersMax];  // the meeting's number
  uint4 lines[2][kPeersMax][kLines];
};

// What a kernel knows of the group.
struct PeerTable {
  int rank;
  int ranks;
  Mailbox* boxes[kPeersMax];
  const unsigned* aborted;  // host memory; not zero once the group has failed
};

// Up to so many values of float32 go as lines, because that is faster.
inline std::int64_t LineValuesMax(int ranks) {
  return std::int64_t{kLines} * kLineValues / (ranks > 2 ? ranks - 1 : 1);
}

// Of a backend that is a rank.
struct PeerSeat {
  ThreadGroup* group;  // outlives the backend
  PeerTable table;
  std::shared_ptr<unsigned> aborted;
};

}  // namespace dsa::cuda
