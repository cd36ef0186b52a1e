// The ranks of a group meet each other once, before anything is queued.
#include "kernels/cuda/peers.h"

#include "common/check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/expert_exchange.h"
#include "kernels/cuda/launch.h"

#include <atomic>
#include <span>
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

Result<DeviceBuffer> AllocateZero(CudaBackend& backend, std::size_t bytes) {
  DSA_ASSIGN_OR_RETURN(DeviceBuffer memory, backend.Allocate(bytes));
  backend.Zero(memory.data(), bytes);
  backend.Synchronize();
  return memory;
}

std::shared_ptr<unsigned> MakeAbortWord() {
  void* word = nullptr;
  DSA_CUDA_CHECK(cudaHostAlloc(&word, sizeof(unsigned), cudaHostAllocPortable));
  *static_cast<unsigned*>(word) = 0;
  return {static_cast<unsigned*>(word), [](unsigned* held) { DSA_CUDA_CHECK(cudaFreeHost(held)); }};
}

// Where `own` and the others have their mailboxes; `ranks` are its group, or its part of it.
cuda::PeerTable TableOf(std::span<void* const> mailboxes, int rank, const unsigned* aborted) {
  cuda::PeerTable table = {
      .rank = rank, .ranks = static_cast<int>(mailboxes.size()), .boxes = {}, .aborted = aborted};
  for (std::size_t other = 0; other < mailboxes.size(); ++other) {
    table.boxes[other] = static_cast<cuda::Mailbox*>(mailboxes[other]);
  }
  return table;
}

bool HasExchange(int ranks, int parts) {
  return parts > 1 || ranks == 1;
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
  const std::size_t part_ranks = ranks.size() / static_cast<std::size_t>(group.parts());
  const bool has_parts = group.parts() > 1 && part_ranks > 1;
  const bool has_exchange = HasExchange(group.ranks(), group.parts());
  std::vector<void*> mailboxes;
  std::vector<void*> part_mailboxes;
  cuda::ExchangeTable exchange{};
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    CudaBackend& backend = *ranks[rank];
    State& state = *backend.state_;
    backend.BindThread();
    for (const CudaBackend* const other : ranks) {
      DSA_RETURN_IF_ERROR(EnableAccess(state.device, other->state_->device));
    }
    DSA_ASSIGN_OR_RETURN(state.mailbox, AllocateZero(backend, sizeof(cuda::Mailbox)));
    mailboxes.push_back(state.mailbox.data());
    if (has_parts) {
      DSA_ASSIGN_OR_RETURN(state.part_mailbox, AllocateZero(backend, sizeof(cuda::Mailbox)));
      part_mailboxes.push_back(state.part_mailbox.data());
    }
    if (has_exchange) {
      const cuda::ExchangeLayout layout(group.ranks());
      DSA_ASSIGN_OR_RETURN(state.exchange_box,
                           AllocateZero(backend, static_cast<std::size_t>(layout.bytes())));
      exchange.boxes[rank] = state.exchange_box.As<std::uint8_t>();
      const std::int64_t first = layout.Rows(0, 0);
      static_assert(cuda::kAbsent == 0xFFFFFFFFU);
      DSA_CUDA_CHECK(cudaMemsetAsync(exchange.boxes[rank] + first, 0xFF,
                                     static_cast<std::size_t>(layout.bytes() - first),
                                     state.stream));
      backend.Synchronize();
    }
  }
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    State& state = *ranks[rank]->state_;
    const auto own = static_cast<int>(rank);
    state.seat = {
        .group = &group, .table = TableOf(mailboxes, own, aborted.get()), .aborted = aborted};
    state.part_seat = state.seat;
    if (group.parts() > 1) {
      const auto [part, rank_of_part] = group.PartOf(own);
      const std::size_t first = rank - static_cast<std::size_t>(rank_of_part);
      const std::span<void* const> boxes(has_parts ? part_mailboxes : mailboxes);
      state.part_seat = {
          .group = part,
          .table = TableOf(boxes.subspan(first, part_ranks), rank_of_part, aborted.get()),
          .aborted = aborted};
    }
    if (has_exchange) {
      state.exchange = std::make_shared<cuda::ExchangeSeat>();
      state.exchange->table = exchange;
    }
  }
  group.OnFailure(
      [aborted] { std::atomic_ref<unsigned>(*aborted).store(1, std::memory_order_release); });
  return {};
}

std::int64_t CudaBackend::PeerBytes(int ranks, int parts) {
  const std::int64_t boxes = parts > 1 && ranks > parts ? 2 : 1;
  return boxes * static_cast<std::int64_t>(sizeof(cuda::Mailbox)) +
         (HasExchange(ranks, parts) ? cuda::ExchangeLayout(ranks).bytes() : 0);
}

}  // namespace dsa
