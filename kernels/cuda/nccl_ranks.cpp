// The ranks of a group get their communicators, before anything is queued.
#include "common/check.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/nccl.h"
#include "kernels/cuda/peers.h"

#include <memory>
#include <set>
#include <string>
#include <utility>

namespace dsa {
namespace {

// Of a piece of a sum or of the columns of all ranks: a chunk of 4096 rows of 7168 in one.
constexpr std::size_t kBufferBytes = std::size_t{128} << 20;

Error Refused(std::string what) {
  return {ErrorCode::kFailedPrecondition, std::move(what)};
}

}  // namespace

Status CudaBackend::JoinNccl(std::span<CudaBackend* const> ranks, ThreadGroup& group) {
  DSA_CHECK(static_cast<int>(ranks.size()) == group.ranks(), "JoinNccl: {} backends, a group of {}",
            ranks.size(), group.ranks());
  if (ranks.size() > cuda::kPeersMax) {
    return Refused(std::to_string(ranks.size()) + " ranks on CUDA, at most " +
                   std::to_string(cuda::kPeersMax));
  }
  if (group.PartOf(0).group != &group) {
    return Refused("data ranks exchange rows in memory that all see; NCCL is for tensor ranks");
  }
  std::set<int> devices;
  for (const CudaBackend* const rank : ranks) {
    if (!devices.insert(rank->state_->device).second) {
      return Refused("two ranks on CUDA device " + std::to_string(rank->state_->device) +
                     ", which NCCL does not allow");
    }
  }
  const Result<cuda::Nccl>& nccl = cuda::LoadNccl();
  if (!nccl.ok()) {
    return nccl.error();
  }
  for (CudaBackend* const rank : ranks) {
    DSA_ASSIGN_OR_RETURN(rank->state_->nccl_buffer, rank->Allocate(kBufferBytes));
  }
  DSA_ASSIGN_OR_RETURN(std::shared_ptr<cuda::NcclGroup> made,
                       cuda::NcclGroup::Create(
                           nccl.value(), static_cast<int>(ranks.size()),
                           [&](int rank) { ranks[static_cast<std::size_t>(rank)]->BindThread(); },
                           [&group](std::string_view reason) { group.Fail(reason); }));
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    State& state = *ranks[rank]->state_;
    state.nccl = made;
    state.seat = {.group = &group,
                  .table = {.rank = static_cast<int>(rank),
                            .ranks = group.ranks(),
                            .boxes = {},
                            .aborted = nullptr},
                  .aborted = nullptr};
  }
  group.OnFailure([made] { made->Abort(); });
  return {};
}

std::int64_t CudaBackend::NcclBytes() {
  return static_cast<std::int64_t>(kBufferBytes);
}

}  // namespace dsa
