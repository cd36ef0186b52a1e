// What a CudaBackend holds: one stream and its graphs, one cuBLASLt handle, scratch.  For
// kernels/cuda/ only.
#pragma once

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/graphs.h"
#include "kernels/cuda/peers.h"

#include <memory>
#include <string>

#include <cuda_runtime_api.h>

namespace dsa {
namespace cuda {
class NcclGroup;      // kernels/cuda/nccl.h
struct ExchangeSeat;  // kernels/cuda/expert_exchange.h
}  // namespace cuda

struct CudaBackend::State {
  int device = 0;
  int multiprocessors = 0;
  std::string name;
  // Of a rank that meets others over NCCL, else null.  Outlives `graphs`, which hold its calls.
  std::shared_ptr<cuda::NcclGroup> nccl;
  DeviceBuffer nccl_buffer;
  cudaStream_t stream = nullptr;
  cuda::Gemm gemm;
  cuda::Graphs graphs;
  ScratchLimits limits{};
  DeviceBuffer scratch;  // of all ops but the products of `gemm`: ScratchArena
  bool scratch_reserved = false;
  DeviceBuffer attention_counters;  // zero between ops
  DeviceBuffer rows_ready;          // a word, zero between ops: ExpertMlp
  DeviceBuffer attention_parts;     // 0xFF in every byte between ops: announced_parts.cuh
  bool batch_invariant = false;     // PlanAttention
  DeviceBuffer mailbox;             // of a rank: cuda::Mailbox
  cuda::PeerSeat seat{};            // of a rank
  DeviceBuffer part_mailbox;        // of a rank in a part of several
  cuda::PeerSeat part_seat{};       // `seat` where the group is one part
  DeviceBuffer exchange_box;        // of a rank with rows of its own: cuda::ExchangeLayout
  std::shared_ptr<cuda::ExchangeSeat> exchange;  // of such a rank
};

}  // namespace dsa
