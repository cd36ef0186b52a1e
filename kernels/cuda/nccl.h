// NCCL as a table of functions, found at run time, and the communicators of the ranks of one
// process.  For ranks that do not see each other's memory, and where somebody asks for it; else
// ranks meet through peers.h, which is faster.  Names no CUDA type and needs no CUDA to be built.
//
// What NCCL decides by itself is set before its first call, as variables of the environment, which
// is all that it reads: Ring, protocols, channels, no NVLink multicast, nothing about a call that
// depends on whether it is recorded.  So equal inputs give equal bits from run to run.  Sums are
// float32 in an order of NCCL's own: by rank for two of them, by the ring for more.
#pragma once

#include "common/status.h"

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

struct CUstream_st;  // *cudaStream_t

namespace dsa::cuda {

// As NCCL's header declares them.
inline constexpr int kNcclSuccess = 0;
inline constexpr int kNcclInProgress = 7;
inline constexpr int kNcclInt8 = 0;
inline constexpr int kNcclFloat32 = 7;
inline constexpr int kNcclSum = 0;
inline constexpr std::size_t kNcclIdBytes = 128;
struct NcclId {
  char internal[kNcclIdBytes];
};
struct NcclCommunicator;  // ncclComm

// Below this NCCL does not know all of NcclVariables.
inline constexpr int kNcclVersionMin = 22203;

// The functions that are called.
struct Nccl {
  int (*get_version)(int* version);
  const char* (*get_error_string)(int result);
  const char* (*get_last_error)(NcclCommunicator* communicator);
  int (*get_unique_id)(NcclId* id);
  int (*comm_init_rank)(NcclCommunicator** communicator, int ranks, NcclId id, int rank);
  int (*comm_get_async_error)(NcclCommunicator* communicator, int* result);
  int (*comm_abort)(NcclCommunicator* communicator);
  int (*comm_destroy)(NcclCommunicator* communicator);
  int (*all_reduce)(const void* send, void* receive, std::size_t count, int type, int op,
                    NcclCommunicator* communicator, CUstream_st* stream);
  int (*all_gather)(const void* send, void* receive, std::size_t count_each, int type,
                    NcclCommunicator* communicator, CUstream_st* stream);
  int version;  // as get_version says it
};

// 22809 is "2.28.9".
std::string NcclVersionText(int version);

// As LibraryCandidates, of libnccl.so.2.
std::vector<std::string> NcclCandidates(std::string_view cuda_home);

struct NcclVariable {
  const char* name;
  const char* value;
};
// What NCCL is told.
std::span<const NcclVariable> NcclVariables();

// Sets them.  FAILED_PRECONDITION naming the first that the environment has with another value, and
// the one that is needed: neither taking over somebody's choice, which could end the promise of
// equal bits, nor overriding it in silence.  Before NCCL's first call and before other threads read
// the environment.
Status SetNcclVariables();

// The first candidate that the loader opens, once SetNcclVariables has set what it needs.
// FAILED_PRECONDITION with one line: every candidate that was tried, the function that is missing,
// or the versions found and needed.
Result<Nccl> OpenNccl(const std::vector<std::string>& candidates);

// Opens NcclCandidates once; the same answer ever after.
const Result<Nccl>& LoadNccl();

// A communicator for each rank.  A rank's calls come from one thread at a time; Abort from any.
class NcclGroup final {
 public:
  // What communicators may take to be made.
  static constexpr std::chrono::seconds kStartLimit{120};

  // Makes the communicators, each on a thread of its own after `bind(rank)`, which makes the rank's
  // device the thread's.  FAILED_PRECONDITION naming the rank and NCCL's reason.  Ends the process,
  // naming them, where ranks have not come within the limit: threads that NCCL keeps cannot be
  // joined.  `on_failure` is called at most once, by a thread of the group's, with one line, when
  // NCCL reports a failure that came behind a call.
  static Result<std::unique_ptr<NcclGroup>> Create(
      const Nccl& nccl, int ranks, const std::function<void(int rank)>& bind,
      std::function<void(std::string_view reason)> on_failure,
      std::chrono::milliseconds limit = kStartLimit);
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;
  // After the graphs that have recorded its calls.
  ~NcclGroup();

  int ranks() const { return static_cast<int>(communicators_.size()); }
  const Nccl& nccl() const { return nccl_; }

  // Queue on the rank's stream.  False, and nothing queued, once the group was aborted.  Fail the
  // device where NCCL refuses.
  bool AllReduce(int rank, const float* partial, float* sum, std::size_t count,
                 CUstream_st* stream);
  // The parts of all ranks behind each other; `part` may lie in its place there.
  bool AllGather(int rank, const void* part, void* all, std::size_t bytes_each,
                 CUstream_st* stream);

  // Returns at once.  A thread of the group's aborts the communicators, which ends kernels that
  // wait for other ranks; nothing is queued from now on.
  void Abort();

 private:
  NcclGroup(const Nccl& nccl, int ranks, std::function<void(std::string_view reason)> on_failure);

  Status MakeAll(const std::function<void(int rank)>& bind, std::chrono::milliseconds limit);
  void Watch();
  // The first failure that came behind a call; empty where there is none.
  std::string AsynchronousFailure() const;
  template <typename Queue>
  bool Call(int rank, const char* name, const Queue& queue);

  const Nccl nccl_;
  const std::function<void(std::string_view reason)> on_failure_;
  std::vector<NcclCommunicator*> communicators_;  // constant after Create
  std::thread watch_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::vector<bool> calling_;  // ranks within a call of NCCL
  bool aborted_ = false;
  bool stopping_ = false;
};

}  // namespace dsa::cuda
