// AllReduce and AllGather of ranks that see each other's memory (peers.h); nccl_collectives.cu has
// those of ranks that do not.
//
//   AllReduce, few values   every rank sends what it adds to all, as lines, and adds up by
//                           itself: one way over the link, (N - 1) * 8 T D bytes
//   AllReduce, others       Meet; each rank reads its share of all parts, adds up, rounds and
//                           writes it to all; Part.  (N - 1) / N * (4 + b) T D bytes, where b are
//                           those of a value of sum
//   AllGather               Meet; each rank writes its columns to all; Part
//
// Sums are float32 in the order of ranks, rounded once.  Whoever computes it, the order is the
// same, so all ranks have the same bits whichever way is taken.
#include "kernels/comm/collectives.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/peer_meeting.cuh"

#include <algorithm>

namespace dsa {
namespace {

using cuda::kPeersMax;
using cuda::PeerTable;

constexpr int kThreads = 512;
constexpr int kWidth = 4;                      // values of a float32 load
constexpr std::int64_t kChunk = 4 * kThreads;  // columns of a row that a block takes together
constexpr std::int64_t kAddressBits = 48;

// Dense operands: values of all rows, one behind the other.
struct ReduceParams {
  const float* partial;
  void* sum;
  std::int64_t values;
};

template <typename Y>
__global__ __launch_bounds__(cuda::kLineThreads) void ReduceLinesKernel(
    const __grid_constant__ ReduceParams p, const __grid_constant__ PeerTable peers) {
  cuda::StartAfterPredecessors();
  const int block = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  cuda::Mailbox& own = *peers.boxes[peers.rank];
  const unsigned number = own.line_meetings[block] + 1;
  const unsigned half = number % 2;
  const std::int64_t first =
      (std::int64_t{block} * cuda::kLineThreads + thread) * cuda::kLineValues;
  const std::int64_t stride = std::int64_t{gridDim.x} * cuda::kLineThreads * cuda::kLineValues;
  const auto load = [&](std::int64_t at) {
    return make_float2(p.partial[at], at + 1 < p.values ? p.partial[at + 1] : 0.0F);
  };
  int line = block * cuda::kBlockLines + thread;
  for (std::int64_t at = first; at < p.values; at += stride, line += cuda::kLineThreads) {
    const float2 mine = load(at);
    const uint4 sent = {__float_as_uint(mine.x), number, __float_as_uint(mine.y), number};
    for (int other = 0; other < peers.ranks; ++other) {
      if (other != peers.rank) {
        cuda::ptx::StoreLine(&peers.boxes[other]->lines[half][peers.rank][line], sent);
      }
    }
  }
  line = block * cuda::kBlockLines + thread;
  for (std::int64_t at = first; at < p.values; at += stride, line += cuda::kLineThreads) {
    const float2 mine = load(at);
    float2 sum{};
    for (int rank = 0; rank < peers.ranks; ++rank) {
      float2 part = mine;
      if (rank != peers.rank) {
        uint4 received{};
        (void)cuda::WaitFor(peers, [&] {
          received = cuda::ptx::LoadLine(&own.lines[half][rank][line]);
          return received.y == number && received.w == number;
        });
        part = make_float2(__uint_as_float(received.x), __uint_as_float(received.z));
      }
      sum.x = rank == 0 ? part.x : sum.x + part.x;
      sum.y = rank == 0 ? part.y : sum.y + part.y;
    }
    Y* const to = static_cast<Y*>(p.sum) + at;
    to[0] = cuda::FromFloat<Y>(sum.x);
    if (at + 1 < p.values) {
      to[1] = cuda::FromFloat<Y>(sum.y);
    }
  }
  __syncthreads();  // all have read the number
  if (thread == 0) {
    own.line_meetings[block] = number;
  }
}

// kWidth values of every rank.
struct Parts {
  float4 of[kPeersMax];
};

__device__ inline const float* PartialOf(const cuda::Meeting& meeting, int rank) {
  return reinterpret_cast<const float*>(meeting.operands[rank][0]);
}

__device__ inline void LoadParts(const cuda::Meeting& meeting, int ranks, std::int64_t at,
                                 Parts& parts) {
#pragma unroll
  for (int rank = 0; rank < kPeersMax; ++rank) {
    if (rank < ranks) {
      parts.of[rank] = __ldcg(reinterpret_cast<const float4*>(PartialOf(meeting, rank) + at));
    }
  }
}

template <typename Y>
__device__ void StoreSum(const cuda::Meeting& meeting, int ranks, std::int64_t at,
                         const Parts& parts) {
  float4 sum = parts.of[0];
#pragma unroll
  for (int rank = 1; rank < kPeersMax; ++rank) {
    if (rank < ranks) {
      sum.x += parts.of[rank].x;
      sum.y += parts.of[rank].y;
      sum.z += parts.of[rank].z;
      sum.w += parts.of[rank].w;
    }
  }
  const cuda::Pack<Y, kWidth> rounded = {{cuda::FromFloat<Y>(sum.x), cuda::FromFloat<Y>(sum.y),
                                          cuda::FromFloat<Y>(sum.z), cuda::FromFloat<Y>(sum.w)}};
  for (int rank = 0; rank < ranks; ++rank) {
    cuda::StorePack(reinterpret_cast<Y*>(meeting.operands[rank][1]) + at, rounded);
  }
}

// One value: those behind the last whole pack.
template <typename Y>
__device__ void AddValue(const cuda::Meeting& meeting, int ranks, std::int64_t at) {
  float sum = 0.0F;
  for (int rank = 0; rank < ranks; ++rank) {
    const float part = __ldcg(PartialOf(meeting, rank) + at);
    sum = rank == 0 ? part : sum + part;
  }
  for (int rank = 0; rank < ranks; ++rank) {
    reinterpret_cast<Y*>(meeting.operands[rank][1])[at] = cuda::FromFloat<Y>(sum);
  }
}

template <typename Y>
__global__ __launch_bounds__(kThreads) void ReduceSharesKernel(
    const __grid_constant__ ReduceParams p, const __grid_constant__ PeerTable peers) {
  __shared__ cuda::Meeting meeting;
  cuda::StartAfterPredecessors();
  const unsigned number = cuda::Meet(peers, meeting, reinterpret_cast<std::uint64_t>(p.partial),
                                     reinterpret_cast<std::uint64_t>(p.sum));
  if (meeting.failed) {
    return;
  }
  const std::int64_t packs = p.values / kWidth;
  const std::int64_t end = packs * (peers.rank + 1) / peers.ranks;
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (std::int64_t pack = packs * peers.rank / peers.ranks + thread; pack < end;
       pack += 2 * stride) {
    const bool has_second = pack + stride < end;
    Parts parts[2];  // on their way together
    LoadParts(meeting, peers.ranks, pack * kWidth, parts[0]);
    if (has_second) {
      LoadParts(meeting, peers.ranks, (pack + stride) * kWidth, parts[1]);
    }
    StoreSum<Y>(meeting, peers.ranks, pack * kWidth, parts[0]);
    if (has_second) {
      StoreSum<Y>(meeting, peers.ranks, (pack + stride) * kWidth, parts[1]);
    }
  }
  const std::int64_t behind = packs * kWidth + thread;
  if (peers.rank == 0 && behind < p.values) {
    AddValue<Y>(meeting, peers.ranks, behind);
  }
  cuda::Part(peers, number);
}

// Columns as words of their size.
template <typename Word>
__global__ __launch_bounds__(kThreads) void GatherKernel(const __grid_constant__ AllGatherParams p,
                                                         const __grid_constant__ PeerTable peers) {
  __shared__ cuda::Meeting meeting;
  cuda::StartAfterPredecessors();
  const unsigned number = cuda::Meet(peers, meeting, reinterpret_cast<std::uint64_t>(p.whole.data),
                                     static_cast<std::uint64_t>(p.part.cols));
  if (meeting.failed) {
    return;
  }
  std::int64_t before = 0;
  std::int64_t all = 0;
  for (int rank = 0; rank < peers.ranks; ++rank) {
    const auto cols = static_cast<std::int64_t>(meeting.operands[rank][1]);
    before += rank < peers.rank ? cols : 0;
    all += cols;
  }
  if (all != p.whole.cols) {
    __trap();  // columns that no rank has, or two have
  }
  const auto* part = static_cast<const Word*>(p.part.data);
  const std::int64_t chunks = (p.part.cols + kChunk - 1) / kChunk;
  for (std::int64_t task = blockIdx.x; task < p.part.rows * chunks; task += gridDim.x) {
    const std::int64_t row = task / chunks;
    const std::int64_t first = task % chunks * kChunk;
    const std::int64_t last = min(first + kChunk, p.part.cols);
#pragma unroll 4
    for (std::int64_t col = first + threadIdx.x; col < last; col += kThreads) {
      const Word value = part[row * p.part.row_stride + col];
      for (int rank = 0; rank < peers.ranks; ++rank) {
        reinterpret_cast<Word*>(
            meeting.operands[rank][0])[row * p.whole.row_stride + before + col] = value;
      }
    }
  }
  cuda::Part(peers, number);
}

template <typename Matrix>
bool IsDense(const Matrix& matrix) {
  return matrix.rows <= 1 || matrix.row_stride == matrix.cols;
}

unsigned Blocks(std::int64_t tasks, std::int64_t threads, std::int64_t most) {
  return static_cast<unsigned>(std::clamp<std::int64_t>((tasks + threads - 1) / threads, 1, most));
}

void CheckAddress(const char* op, const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  DSA_CHECK(address % (kWidth * sizeof(float)) == 0 && address >> kAddressBits == 0,
            "{}: an operand at {:#x}, expected 16-byte alignment and 48 bits", std::string_view(op),
            address);
}

}  // namespace

// A rank whose host has still to do something that waits for its device, such as loading a kernel,
// must not be waited for by a kernel.  So hosts meet first; those that record have nothing queued.
const cuda::PeerTable* CudaBackend::Peers(const CollectiveCall& call, const cuda::PeerSeat& seat) {
  DSA_CHECK(seat.group != nullptr, "CudaBackend: {} of a backend in no group, {} rows", call.op,
            call.rows);
  if (state_->graphs.is_recording()) {
    seat.group->Note(seat.table.rank, call);
    return &seat.table;
  }
  return seat.group->Meet(seat.table.rank, call, nullptr) ? &seat.table : nullptr;
}

void CudaBackend::AllReduce(const AllReduceParams& params) {
  const auto [tokens, hidden] = Validate(params);
  DSA_CHECK(params.partial.type == DataType::kF32, "AllReduce: partial has type {}, expected {}",
            static_cast<int>(params.partial.type), static_cast<int>(DataType::kF32));
  DSA_CHECK(IsDense(params.partial) && IsDense(params.sum),
            "AllReduce: rows of {} values, {} apart in partial, {} in sum", hidden,
            params.partial.row_stride, params.sum.row_stride);
  CheckAddress("AllReduce", params.partial.data);
  CheckAddress("AllReduce", params.sum.data);
  if (state_->nccl != nullptr) {
    AllReduceByNccl(params);
    return;
  }
  const PeerTable* const peers =
      Peers({.op = "AllReduce", .rows = tokens, .cols = hidden, .type = params.sum.type},
            state_->part_seat);
  const ReduceParams p = {.partial = static_cast<const float*>(params.partial.data),
                          .sum = params.sum.data,
                          .values = tokens * hidden};
  if (p.values == 0 || peers == nullptr) {
    return;
  }
  const std::int64_t lines = (p.values + cuda::kLineValues - 1) / cuda::kLineValues;
  const bool is_small = p.values <= cuda::LineValuesMax(peers->ranks);
  cuda::DispatchFloat(params.sum.type, [&]<typename Y>(Y) {
    if (is_small) {
      cuda::LaunchDependent(ReduceLinesKernel<Y>,
                            {.grid = Blocks(lines, cuda::kLineThreads, cuda::kLineBlocks),
                             .threads = cuda::kLineThreads},
                            state_->stream, p, *peers);
    } else {
      const std::int64_t packs = p.values / kWidth / peers->ranks;
      cuda::LaunchDependent(
          ReduceSharesKernel<Y>,
          {.grid = Blocks(packs, kThreads, cuda::kMeetingBlocks), .threads = kThreads},
          state_->stream, p, *peers);
    }
  });
}

void CudaBackend::AllGather(const AllGatherParams& params) {
  const auto [rows, cols] = Validate(params);
  if (state_->nccl != nullptr) {
    AllGatherByNccl(params);
    return;
  }
  const PeerTable* const peers = Peers(
      {.op = "AllGather", .rows = rows, .cols = cols, .type = params.part.type}, state_->part_seat);
  if (rows == 0 || peers == nullptr) {
    return;
  }
  const cuda::LaunchShape shape = {.grid = Blocks(rows * cols, kChunk, cuda::kMeetingBlocks),
                                   .threads = kThreads};
  CheckAddress("AllGather", params.whole.data);
  if (SizeOf(params.part.type) == sizeof(std::uint32_t)) {
    cuda::LaunchDependent(GatherKernel<std::uint32_t>, shape, state_->stream, params, *peers);
  } else {
    cuda::LaunchDependent(GatherKernel<std::uint16_t>, shape, state_->stream, params, *peers);
  }
}

}  // namespace dsa
