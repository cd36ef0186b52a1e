// AllReduce and AllGather over NCCL (nccl.h), for ranks that do not see each other's memory.
//
//   AllReduce   float32 parts are added as they are, in NCCL's order, straight into a sum of
//               float32; else into a buffer, from where one kernel rounds to the type of sum
//   AllGather   every rank's columns are packed to as many as the widest has, gathered into a
//               buffer, and put into their places by one kernel
//
// What the buffer has not room for goes in pieces, of values or of rows, which follow from the
// extents alone.
#include "kernels/comm/collectives.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/nccl.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 4;  // values of a float32 load
constexpr unsigned kBlocksMax = 8 * cuda::kMultiprocessors;

unsigned Blocks(std::int64_t tasks) {
  return static_cast<unsigned>(
      std::clamp<std::int64_t>((tasks + kThreads - 1) / kThreads, 1, kBlocksMax));
}

template <typename Y>
__global__ __launch_bounds__(kThreads) void RoundKernel(const float* sums, Y* rounded,
                                                        std::int64_t values) {
  cuda::StartAfterPredecessors();
  const std::int64_t packs = values / kWidth;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t pack = thread; pack < packs; pack += stride) {
    const float4 sum = reinterpret_cast<const float4*>(sums)[pack];
    const cuda::Pack<Y, kWidth> four = {{cuda::FromFloat<Y>(sum.x), cuda::FromFloat<Y>(sum.y),
                                         cuda::FromFloat<Y>(sum.z), cuda::FromFloat<Y>(sum.w)}};
    cuda::StorePack(rounded + pack * kWidth, four);
  }
  const std::int64_t behind = packs * kWidth + thread;
  if (behind < values) {
    rounded[behind] = cuda::FromFloat<Y>(sums[behind]);
  }
}

// Rows of the widest rank's columns, of one rank after the other; words of the values' size.
struct GatheredRows {
  std::int64_t rows;
  std::int64_t width;
  int ranks;
  std::int64_t cols[cuda::kPeersMax];
};

template <typename Word>
__global__ __launch_bounds__(kThreads) void PackKernel(const Word* part, std::int64_t row_stride,
                                                       std::int64_t cols, std::int64_t width,
                                                       std::int64_t rows, Word* packed) {
  cuda::StartAfterPredecessors();
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    for (std::int64_t col = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; col < cols;
         col += std::int64_t{gridDim.x} * kThreads) {
      packed[row * width + col] = part[row * row_stride + col];
    }
  }
}

template <typename Word>
__global__ __launch_bounds__(kThreads) void PlaceKernel(const Word* gathered,
                                                        const __grid_constant__ GatheredRows from,
                                                        Word* whole, std::int64_t row_stride) {
  cuda::StartAfterPredecessors();
  for (std::int64_t row = blockIdx.y; row < from.rows; row += gridDim.y) {
    std::int64_t before = 0;
    for (int rank = 0; rank < from.ranks; ++rank) {
      const Word* const part = gathered + (rank * from.rows + row) * from.width;
      for (std::int64_t col = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
           col < from.cols[rank]; col += std::int64_t{gridDim.x} * kThreads) {
        whole[row * row_stride + before + col] = part[col];
      }
      before += from.cols[rank];
    }
  }
}

cuda::LaunchShape RowsShape(std::int64_t rows, std::int64_t cols) {
  const unsigned across = std::min(Blocks(cols), 64U);
  return {.grid = dim3(across, static_cast<unsigned>(std::clamp<std::int64_t>(
                                   rows, 1, std::max(1U, kBlocksMax / across)))),
          .threads = kThreads};
}

}  // namespace

void CudaBackend::AllReduceByNccl(const AllReduceParams& params) {
  const std::int64_t values = params.partial.rows * params.partial.cols;
  const cuda::PeerTable* const seat = Peers({.op = "AllReduce",
                                             .rows = params.partial.rows,
                                             .cols = params.partial.cols,
                                             .type = params.sum.type},
                                            state_->seat);
  if (values == 0 || seat == nullptr) {
    return;
  }
  const auto* const partial = static_cast<const float*>(params.partial.data);
  if (params.sum.type == DataType::kF32) {
    (void)state_->nccl->AllReduce(seat->rank, partial, static_cast<float*>(params.sum.data),
                                  static_cast<std::size_t>(values), state_->stream);
    return;
  }
  auto* const sums = state_->nccl_buffer.As<float>();
  const auto room = static_cast<std::int64_t>(state_->nccl_buffer.bytes() / sizeof(float));
  for (std::int64_t first = 0; first < values; first += room) {
    const std::int64_t count = std::min(room, values - first);
    if (!state_->nccl->AllReduce(seat->rank, partial + first, sums, static_cast<std::size_t>(count),
                                 state_->stream)) {
      return;
    }
    cuda::DispatchFloat(params.sum.type, [&]<typename Y>(Y) {
      cuda::LaunchDependent(RoundKernel<Y>,
                            {.grid = dim3(Blocks(count / kWidth)), .threads = kThreads},
                            state_->stream, sums, static_cast<Y*>(params.sum.data) + first, count);
    });
  }
}

// A rank knows its own columns; those of the others, which its buffer is cut by, it hears where the
// hosts meet, while a graph is recorded too.
void CudaBackend::AllGatherByNccl(const AllGatherParams& params) {
  const cuda::PeerSeat& seat = state_->seat;
  const std::int64_t rows = params.part.rows;
  const CollectiveCall call = {
      .op = "AllGather", .rows = rows, .cols = params.whole.cols, .type = params.part.type};
  if (!seat.group->Meet(seat.table.rank, call, &params)) {
    return;
  }
  GatheredRows gathered{.rows = 0, .width = 0, .ranks = seat.table.ranks, .cols = {}};
  std::int64_t all = 0;
  for (int rank = 0; rank < gathered.ranks; ++rank) {
    gathered.cols[rank] = seat.group->ParamsOf<AllGatherParams>(rank).part.cols;
    gathered.width = std::max(gathered.width, gathered.cols[rank]);
    all += gathered.cols[rank];
  }
  seat.group->Leave(seat.table.rank);
  DSA_CHECK(all == params.whole.cols, "AllGather: {} of {} columns, {} rows", all,
            params.whole.cols, rows);
  if (rows == 0 || all == 0) {
    return;
  }
  const std::int64_t value_bytes = SizeOf(params.part.type);
  const std::int64_t row_bytes = gathered.width * value_bytes;
  const auto room =
      static_cast<std::int64_t>(state_->nccl_buffer.bytes()) / (row_bytes * gathered.ranks);
  DSA_CHECK(room > 0, "AllGather: rows of {} bytes on {} ranks, {} of buffer", row_bytes,
            gathered.ranks, state_->nccl_buffer.bytes());
  const auto queue = [&]<typename Word>(Word) {
    auto* const buffer = state_->nccl_buffer.As<Word>();
    const auto* const part = static_cast<const Word*>(params.part.data);
    for (std::int64_t first = 0; first < rows; first += room) {
      gathered.rows = std::min(room, rows - first);
      Word* const packed = buffer + seat.table.rank * gathered.rows * gathered.width;
      if (params.part.cols > 0) {
        cuda::LaunchDependent(PackKernel<Word>, RowsShape(gathered.rows, params.part.cols),
                              state_->stream, part + first * params.part.row_stride,
                              params.part.row_stride, params.part.cols, gathered.width,
                              gathered.rows, packed);
      }
      if (!state_->nccl->AllGather(seat.table.rank, packed, buffer,
                                   static_cast<std::size_t>(gathered.rows * row_bytes),
                                   state_->stream)) {
        return;
      }
      cuda::LaunchDependent(PlaceKernel<Word>, RowsShape(gathered.rows, gathered.width),
                            state_->stream, buffer, gathered,
                            static_cast<Word*>(params.whole.data) + first * params.whole.row_stride,
                            params.whole.row_stride);
    }
  };
  if (value_bytes == sizeof(std::uint32_t)) {
    queue(std::uint32_t{});
  } else {
    queue(std::uint16_t{});
  }
}

}  // namespace dsa
