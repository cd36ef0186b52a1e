// What the tests tell the library that stands in NCCL's place, and ask it.
#pragma once

namespace dsa::testing {

enum class FakeNcclFault {
  kNone,
  kOld,           // says 2.18.5
  kInitFails,     // of rank 1
  kInitIsSilent,  // of rank 1: never returns
  kReduceFails,   // every sum is refused
  kFailsBehind,   // rank 1 reports a failure that came behind its calls
};

struct FakeNcclCounts {
  int aborted;
  int destroyed;
  int used_late;  // calls with a communicator that had been given up
};

// The library's own functions beside NCCL's, by these names.
inline constexpr char kSetFakeNcclFault[] = "dsa_set_fake_nccl_fault";
inline constexpr char kReadFakeNcclCounts[] = "dsa_read_fake_nccl_counts";
using SetFakeNcclFault = void (*)(FakeNcclFault fault);  // and sets the counts to zero
using ReadFakeNcclCounts = FakeNcclCounts (*)();

}  // namespace dsa::testing
