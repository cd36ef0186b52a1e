// The ranks of a group meet each other once, before anything is queued.
#include "kernels/cuda/peers.h"

#include "common/check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/launch.h"

#include <atomic>
#include <string>
#include <utility>
#include <vector>

namespace dsa {
namespace {

Status CheckAccess(int from, int to) {
  int possible = from == to ? 1 : 0;
  if (from != to) {
    DSA_CUDA_CHECK(cudaDeviceCanAccessPeer(&possible, from, to));
  }
  return possible != 0 ? Status()
                       : Error{ErrorCode::kFailedPrecondition,
                               "CUDA device " + std::to_string(from) +
                                   " cannot access the memory of device " + std::to_string(to)};
}

// `from` sees the memory of `to`; the calling thread is bound to `from`.
Status EnableAccess(int from, int to) {
  if (from == to) {
    return {};
  }
  DSA_RETURN_IF_ERROR(CheckAccess(from, to));
  const cudaError_t status = cudaDeviceEnablePeerAccess(to, 0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    (void)cudaGetLastError();
    return {};
  }
  DSA_CUDA_CHECK(status);
  return {};
}

std::shared_ptr<unsigned> MakeAbortWord() {
  void* word = nullptr;
  DSA_CUDA_CHECK(cudaHostAlloc(&word, sizeof(unsigned), cudaHostAllocPortable));
  *static_cast<unsigned*>(word) = 0;
  return {static_cast<unsigned*>(word), [](unsigned* held) { DSA_CUDA_CHECK(cudaFreeHost(held)); }};
}

}  // namespace

Status CudaBackend::CheckPeerAccess(std::span<CudaBackend* const> ranks) {
  for (const CudaBackend* const from : ranks) {
    for (const CudaBackend* const to : ranks) {
      DSA_RETURN_IF_ERROR(CheckAccess(from->state_->device, to->state_->device));
    }
  }
  return {};
}

Status CudaBackend::JoinPeers(std::span<CudaBackend* const> ranks, ThreadGroup& group) {
  DSA_CHECK(static_cast<int>(ranks.size()) == group.ranks(),
            "JoinPeers: {} backends, a group of {}", ranks.size(), group.ranks());
  if (ranks.size() > cuda::kPeersMax) {
    return Error{ErrorCode::kFailedPrecondition, std::to_string(ranks.size()) +
                                                     " ranks on CUDA, at most " +
                                                     std::to_string(cuda::kPeersMax)};
  }
  const std::shared_ptr<unsigned> aborted = MakeAbortWord();
  cuda::PeerTable table = {
      .rank = 0, .ranks = group.ranks(), .boxes = {}, .aborted = aborted.get()};
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    CudaBackend& backend = *ranks[rank];
    backend.BindThread();
    for (const CudaBackend* const other : ranks) {
      DSA_RETURN_IF_ERROR(EnableAccess(backend.state_->device, other->state_->device));
    }
    DSA_ASSIGN_OR_RETURN(backend.state_->mailbox, backend.Allocate(sizeof(cuda::Mailbox)));
    backend.Zero(backend.state_->mailbox.data(), sizeof(cuda::Mailbox));
    backend.Synchronize();
    table.boxes[rank] = backend.state_->mailbox.As<cuda::Mailbox>();
  }
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    table.rank = static_cast<int>(rank);
    ranks[rank]->state_->seat = {.group = &group, .table = table, .aborted = aborted};
  }
  group.OnFailure(
      [aborted] { std::atomic_ref<unsigned>(*aborted).store(1, std::memory_order_release); });
  return {};
}

std::int64_t CudaBackend::PeerBytes() {
  return sizeof(cuda::Mailbox);
}

}  // namespace dsa
