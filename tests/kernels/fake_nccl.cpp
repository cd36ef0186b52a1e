// A library in NCCL's place, whose ranks are threads and whose devices are the host: calls return
// once all ranks have made them.  Fails as it is told to.
#include "tests/kernels/fake_nccl.h"

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include <unistd.h>

namespace dsa::testing {
namespace {

constexpr int kUnhandledError = 1;
constexpr int kInvalidUsage = 5;
constexpr int kRemoteError = 6;
constexpr int kVersion = 22809;
constexpr int kOldVersion = 21805;

struct Id {
  char internal[128];
};

// Guarded by the library's mutex.
struct Group {
  int ranks = 0;
  int calls = 0;  // made by all ranks together
  std::vector<const void*> parts;
  int read = 0;  // ranks that have read all parts of all calls
  bool aborted = false;
};

struct Communicator {
  Group* group;
  int rank;
  bool given_up = false;
};

struct Library {
  std::mutex mutex;
  std::condition_variable changed;
  FakeNcclFault fault = FakeNcclFault::kNone;
  FakeNcclCounts counts{};
  int ids = 0;
  std::map<int, std::unique_ptr<Group>> groups;
  std::vector<std::unique_ptr<Communicator>> communicators;
};

Library& Fake() {
  static auto* const library = new Library;  // threads that never return refer to it
  return *library;
}

void CountLate(const Communicator& communicator) {
  Fake().counts.used_late += communicator.given_up ? 1 : 0;
}

// Once all ranks are there, `read` sees their parts; nobody goes on before all have read.
template <typename Read>
int Meet(Communicator& communicator, const void* part, const Read& read) {
  Library& fake = Fake();
  Group& group = *communicator.group;
  std::unique_lock lock(fake.mutex);
  CountLate(communicator);
  group.parts[static_cast<std::size_t>(communicator.rank)] = part;
  const int complete = group.calls++ / group.ranks * group.ranks + group.ranks;
  fake.changed.notify_all();
  fake.changed.wait(lock, [&] { return group.calls >= complete || group.aborted; });
  if (group.aborted) {
    return kRemoteError;
  }
  read(group);
  ++group.read;
  fake.changed.notify_all();
  fake.changed.wait(lock, [&] { return group.read >= complete || group.aborted; });
  return 0;
}

int GiveUp(Communicator& communicator, int& count) {
  Library& fake = Fake();
  const std::lock_guard lock(fake.mutex);
  CountLate(communicator);
  communicator.given_up = true;
  ++count;
  return 0;
}

}  // namespace
}  // namespace dsa::testing

#define DSA_EXPORT extern "C" __attribute__((visibility("default")))
using dsa::testing::Communicator;
using dsa::testing::Fake;
using dsa::testing::FakeNcclFault;
using dsa::testing::Group;

// NOLINTBEGIN(readability-identifier-naming): NCCL's names
DSA_EXPORT void dsa_set_fake_nccl_fault(FakeNcclFault fault) {
  const std::lock_guard lock(Fake().mutex);
  Fake().fault = fault;
  Fake().counts = {};
}

DSA_EXPORT dsa::testing::FakeNcclCounts dsa_read_fake_nccl_counts() {
  const std::lock_guard lock(Fake().mutex);
  return Fake().counts;
}

DSA_EXPORT int ncclGetVersion(int* version) {
  *version =
      Fake().fault == FakeNcclFault::kOld ? dsa::testing::kOldVersion : dsa::testing::kVersion;
  return 0;
}

DSA_EXPORT const char* ncclGetErrorString(int result) {
  return result == dsa::testing::kInvalidUsage ? "invalid usage" : "unhandled error";
}

DSA_EXPORT const char* ncclGetLastError(Communicator* /*communicator*/) {
  return "planted\nand a second line";
}

DSA_EXPORT int ncclGetUniqueId(dsa::testing::Id* id) {
  const std::lock_guard lock(Fake().mutex);
  const int number = Fake().ids++;
  std::memcpy(id->internal, &number, sizeof(number));
  return 0;
}

DSA_EXPORT int ncclCommInitRank(Communicator** communicator, int ranks, dsa::testing::Id id,
                                int rank) {
  {
    const std::lock_guard lock(Fake().mutex);
    if (Fake().fault == FakeNcclFault::kInitFails && rank == 1) {
      return dsa::testing::kUnhandledError;
    }
    if (Fake().fault != FakeNcclFault::kInitIsSilent || rank != 1) {
      int number = 0;
      std::memcpy(&number, id.internal, sizeof(number));
      std::unique_ptr<Group>& group = Fake().groups[number];
      if (group == nullptr) {
        group = std::make_unique<Group>();
        group->ranks = ranks;
        group->parts.resize(static_cast<std::size_t>(ranks));
      }
      Fake().communicators.push_back(std::make_unique<Communicator>(
          Communicator{.group = group.get(), .rank = rank, .given_up = false}));
      *communicator = Fake().communicators.back().get();
      return 0;
    }
  }
  while (true) {
    pause();
  }
}

DSA_EXPORT int ncclCommGetAsyncError(Communicator* communicator, int* result) {
  const std::lock_guard lock(Fake().mutex);
  dsa::testing::CountLate(*communicator);
  *result = Fake().fault == FakeNcclFault::kFailsBehind && communicator->rank == 1
                ? dsa::testing::kRemoteError
                : 0;
  return 0;
}

DSA_EXPORT int ncclCommAbort(Communicator* communicator) {
  {
    const std::lock_guard lock(Fake().mutex);
    communicator->group->aborted = true;
  }
  Fake().changed.notify_all();
  return dsa::testing::GiveUp(*communicator, Fake().counts.aborted);
}

DSA_EXPORT int ncclCommDestroy(Communicator* communicator) {
  return dsa::testing::GiveUp(*communicator, Fake().counts.destroyed);
}

DSA_EXPORT int ncclAllReduce(const void* send, void* receive, std::size_t count, int type, int op,
                             Communicator* communicator, void* /*stream*/) {
  constexpr int kFloat32 = 7;
  if (Fake().fault == FakeNcclFault::kReduceFails || type != kFloat32 || op != 0) {
    return dsa::testing::kInvalidUsage;
  }
  return dsa::testing::Meet(*communicator, send, [&](const Group& group) {
    auto* const sums = static_cast<float*>(receive);
    for (std::size_t i = 0; i < count; ++i) {
      sums[i] = 0.0F;
      for (const void* const part : group.parts) {
        sums[i] += static_cast<const float*>(part)[i];
      }
    }
  });
}

#ifndef DSA_FAKE_LACKS_ALL_GATHER
DSA_EXPORT int ncclAllGather(const void* send, void* receive, std::size_t count, int type,
                             Communicator* communicator, void* /*stream*/) {
  constexpr int kInt8 = 0;
  if (type != kInt8) {
    return dsa::testing::kInvalidUsage;
  }
  return dsa::testing::Meet(*communicator, send, [&](const Group& group) {
    for (std::size_t rank = 0; rank < group.parts.size(); ++rank) {
      std::memcpy(static_cast<char*>(receive) + rank * count, group.parts[rank], count);
    }
  });
}
#endif
// NOLINTEND(readability-identifier-naming)
