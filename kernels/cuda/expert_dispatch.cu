// Dispatch of ranks that see each other's memory (expert_exchange.h).
//
//   few rows   each line goes one way, to the ranks with an expert of the row
//   others     Meet; each rank writes its rows, and which experts they have there, to all; Part
#include "kernels/comm/collectives.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/expert_exchange.cuh"

namespace dsa {
namespace {

using namespace cuda;  // NOLINT(google-build-using-namespace): its own exchange

struct DispatchCall {
  ExchangeRows own;
  const std::uint8_t* x;
  std::int64_t x_stride;  // of rows, in bytes
  std::uint8_t* rows;
  std::int64_t rows_stride;
  Matrix<std::int32_t> row_experts;
  Matrix<const float> weights;  // data null: they stay
  Matrix<float> row_weights;
};

// Block (c, t): line c * 224 + thread of row t of every rank.  Each warp finds out by itself where
// the row goes and what comes.
__global__ __launch_bounds__(kExchangeThreads, 4) void DispatchLinesKernel(
    const __grid_constant__ DispatchCall p, const __grid_constant__ ExchangeTable table) {
  cuda::StartAfterPredecessors();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int t = static_cast<int>(blockIdx.y);
  const int me = table.peers.rank;
  const int sender = SenderOf(table, me);
  const int tokens = static_cast<int>(p.own.experts.rows);
  const int choices = static_cast<int>(p.own.experts.cols);
  const std::int64_t lines = p.own.row_bytes / kLineBytes;
  const std::int64_t line = std::int64_t{blockIdx.x} * kExchangeThreads + thread;
  const bool has_line = line < lines;
  const bool has_choice = lane < choices;
  const bool is_first = blockIdx.x == 0 && thread < kWarpSize;  // writes what is of the row
  const ExchangeLayout layout(table.peers.ranks);
  auto* const meetings = reinterpret_cast<unsigned*>(table.boxes[me] + ExchangeLayout::Meetings());
  const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
  const unsigned number = meetings[block] + 1;
  const unsigned half = number % 2;
  const auto routing_of = [&](int box, int rank) {
    return reinterpret_cast<uint4*>(table.boxes[box] + layout.Routing(half, rank)) +
           t * kChoicesMax + lane;
  };
  const auto place_of = [&](int box, int rank) {
    return reinterpret_cast<uint4*>(table.boxes[box] + layout.Rows(half, rank)) + t * lines + line;
  };
  const auto row_of = [&](int of) {
    const std::int64_t row = std::int64_t{of} * tokens + t;
    return reinterpret_cast<uint4*>(p.rows + row * p.rows_stride) + line;
  };
  const auto tell = [&](int of, std::int32_t expert, float weight) {
    if (is_first && has_choice) {
      p.row_experts.Row(of * tokens + t)[lane] = expert;
      if (p.weights.data != nullptr) {
        p.row_weights.Row(of * tokens + t)[lane] = weight;
      }
    }
  };

  // Send.
  uint4 value{};
  if (has_line) {
    value = reinterpret_cast<const uint4*>(p.x + t * p.x_stride)[line];
  }
  const std::int32_t own = has_choice ? p.own.ExpertOf(t, lane) : -1;
  const float weight = has_choice && p.weights.data != nullptr ? p.weights.Row(t)[lane] : 0.0F;
  const int owner = OwnerOf(table, own);
  const unsigned targets = __reduce_or_sync(kAllLanes, owner < 0 ? 0U : 1U << owner);
  if (is_first && has_choice) {
    const uint4 sent = {static_cast<unsigned>(own), number, __float_as_uint(weight), number};
    for (int rank = 0; rank < table.peers.ranks; ++rank) {
      if (rank != me) {
        cuda::ptx::StoreLine(routing_of(rank, me), sent);
      }
    }
  }
  for (int rank = 0; rank < table.peers.ranks; ++rank) {
    // Ranks with the same rows have this one.
    const bool is_sent = me % table.copies == 0 && SenderOf(table, rank) != sender;
    if (is_sent && has_line && (targets >> rank & 1U) != 0) {
      cuda::ptx::StoreLine(place_of(rank, me), Present(value));
    }
  }
  tell(sender, owner == me ? own : -1, weight);
  if (has_line && (targets >> me & 1U) != 0) {
    *row_of(sender) = value;
  }

  // Receive.
  for (int rank = 0; rank < table.peers.ranks; ++rank) {
    if (rank == me) {
      continue;
    }
    // Of the others that have a sender's rows it is enough that they have come.
    const bool is_sender = rank % table.copies == 0 && SenderOf(table, rank) != sender;
    const bool may_come = is_sender && has_line;
    uint4 got = {cuda::kAbsent, number, 0, number};
    uint4 came = Empty();
    (void)WaitForWarp(table.peers, [&] {  // both at once
      if (has_choice) {
        got = cuda::ptx::LoadLine(routing_of(me, rank));
      }
      if (may_come) {
        came = cuda::ptx::LoadLine(place_of(me, rank));
      }
      return got.y == number && got.w == number;
    });
    if (!is_sender) {
      continue;
    }
    const auto sent = static_cast<std::int32_t>(got.x);
    const std::int32_t expert = Has(table, me, sent) ? sent : -1;
    tell(SenderOf(table, rank), expert, __uint_as_float(got.z));
    if (__any_sync(kAllLanes, expert >= 0) && may_come) {
      uint4* const place = place_of(me, rank);
      (void)cuda::WaitFor(table.peers, [&] {
        if (IsPresent(came)) {
          return true;
        }
        came = cuda::ptx::LoadLine(place);
        return false;
      });
      *place = Empty();
      *row_of(SenderOf(table, rank)) = came;
    }
  }
  __syncthreads();  // all have read the number
  // Those of blocks that this grid has not, as well: all count alike.
  const unsigned grid = gridDim.x * gridDim.y;
  for (unsigned i = block + threadIdx.x * grid; i < cuda::kExchangeBlocksMax;
       i += kExchangeThreads * grid) {
    meetings[i] = number;
  }
}

// A warp takes a row: it writes it, and which experts it has there, to all ranks.
template <typename Word>
__global__ __launch_bounds__(kRowThreads) void DispatchRowsKernel(
    const __grid_constant__ DispatchCall p, const __grid_constant__ ExchangeTable table) {
  __shared__ cuda::Meeting meeting;
  cuda::StartAfterPredecessors();
  const unsigned number = cuda::Meet(table.peers, meeting, reinterpret_cast<std::uint64_t>(p.rows),
                                     reinterpret_cast<std::uint64_t>(p.row_experts.data));
  if (meeting.failed) {
    return;
  }
  constexpr int kWords = 7;  // of a lane, under way
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int me = table.peers.rank;
  const auto tokens = static_cast<int>(p.own.experts.rows);
  const auto choices = static_cast<int>(p.own.experts.cols);
  const auto words = static_cast<int>(p.own.row_bytes / static_cast<std::int64_t>(sizeof(Word)));
  const int sender = SenderOf(table, me);
  for (int t = static_cast<int>(blockIdx.x) * kRowWarps + warp; t < tokens;
       t += static_cast<int>(gridDim.x) * kRowWarps) {
    const std::int64_t row = std::int64_t{sender} * tokens + t;
    unsigned owners = 0;
    for (int first = 0; first < choices; first += kWarpSize) {
      const int k = first + lane;
      const std::int32_t expert = k < choices ? p.own.ExpertOf(t, k) : -1;
      const int owner = OwnerOf(table, expert);
      owners |= __reduce_or_sync(kAllLanes, owner < 0 ? 0U : 1U << owner);
      for (int rank = 0; rank < table.peers.ranks; ++rank) {
        const bool is_here = rank == me;
        if (k < choices &&
            (is_here || (me % table.copies == 0 && SenderOf(table, rank) != sender))) {
          auto* const row_experts = reinterpret_cast<std::int32_t*>(
              is_here ? reinterpret_cast<std::uint64_t>(p.row_experts.data)
                      : meeting.operands[rank][1]);
          row_experts[row * p.row_experts.row_stride + k] = owner == rank ? expert : -1;
        }
      }
    }
    const auto* const from = reinterpret_cast<const Word*>(p.x + t * p.x_stride);
    for (int first = lane; first < words; first += kWords * kWarpSize) {
      Word values[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        if (first + i * kWarpSize < words) {
          values[i] = from[first + i * kWarpSize];
        }
      }
      for (int rank = 0; rank < table.peers.ranks; ++rank) {
        const bool is_sent =
            rank == me || (me % table.copies == 0 && SenderOf(table, rank) != sender);
        if (!is_sent || (owners >> rank & 1U) == 0) {
          continue;
        }
        auto* const to = reinterpret_cast<Word*>(
            reinterpret_cast<std::uint8_t*>(meeting.operands[rank][0]) + row * p.rows_stride);
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          if (first + i * kWarpSize < words) {
            to[first + i * kWarpSize] = values[i];
          }
        }
      }
    }
  }
  cuda::Part(table.peers, number);
}

}  // namespace

// Null once the group has failed.  What experts the ranks have is told once, on the hosts.
const cuda::ExchangeTable* CudaBackend::Exchange(const CollectiveCall& call,
                                                 const ExpertRange& here, std::int64_t copies) {
  ThreadGroup* const group = state_->seat.group;
  const cuda::PeerTable* const peers = Peers(call, state_->seat);
  DSA_CHECK(state_->exchange != nullptr, "CudaBackend: {} of {} ranks in one part", call.op,
            group->ranks());
  cuda::ExchangeSeat& exchange = *state_->exchange;
  cuda::ExchangeTable& table = exchange.table;
  DSA_CHECK(group->ranks() % copies == 0, "collectives: {} ranks have the same rows, of {}", copies,
            group->ranks());
  if (peers == nullptr) {
    return nullptr;
  }
  const int me = peers->rank;
  if (!exchange.has_experts) {
    if (!group->Meet(me, {.op = "experts", .rows = copies, .cols = 0, .type = DataType::kF32},
                     &here)) {
      return nullptr;
    }
    for (int rank = 0; rank < group->ranks(); ++rank) {
      table.experts[rank] = group->ParamsOf<ExpertRange>(rank);
    }
    group->Leave(me);
    table.peers = *peers;
    table.copies = static_cast<int>(copies);
    exchange.has_experts = true;
  }
  const ExpertRange& known = table.experts[me];
  DSA_CHECK(known.first == here.first && known.count == here.count && table.copies == copies,
            "{}: experts {} + {} of {} copies, {} + {} of {} before", call.op, here.first,
            here.count, copies, known.first, known.count, table.copies);
  return &table;
}

void CudaBackend::Dispatch(const DispatchParams& params) {
  const DispatchExtents extents = Validate(params);
  const cuda::ExchangeTable* const table = Exchange(
      {.op = "Dispatch", .rows = extents.tokens, .cols = extents.hidden, .type = params.x.type},
      params.here, params.copies);
  if (table == nullptr || extents.tokens == 0) {
    return;
  }
  const std::int64_t rows = table->peers.ranks / params.copies * extents.tokens;
  DSA_CHECK(params.rows.rows == rows, "Dispatch: room for {} rows, {} ranks of {}",
            params.rows.rows, table->peers.ranks, extents.tokens);
  state_->exchange->has_dispatched = true;
  const std::int64_t value_bytes = SizeOf(params.x.type);
  const DispatchCall call = {.own = {.experts = params.experts,
                                     .live_rows = params.live_rows.data,
                                     .row_bytes = extents.hidden * value_bytes},
                             .x = static_cast<const std::uint8_t*>(params.x.data),
                             .x_stride = params.x.row_stride * value_bytes,
                             .rows = static_cast<std::uint8_t*>(params.rows.data),
                             .rows_stride = params.rows.row_stride * value_bytes,
                             .row_experts = params.row_experts,
                             .weights = params.weights,
                             .row_weights = params.row_weights};
  DSA_CHECK(params.weights.data == nullptr || CanCombineParts(extents),
            "Dispatch: weights of {} rows of {} values", extents.tokens, extents.hidden);
  if (RowsGoOneWay(extents, call.own.row_bytes)) {
    CheckLines("Dispatch", params.x);
    CheckLines("Dispatch", params.rows);
    cuda::LaunchDependent(
        DispatchLinesKernel,
        {.grid = LineGrid(extents.tokens, call.own.row_bytes), .threads = kExchangeThreads},
        state_->stream, call, *table);
    return;
  }
  const cuda::LaunchShape shape = {.grid = RowBlocks(extents.tokens), .threads = kRowThreads};
  if (HasLines(call.own.row_bytes)) {
    CheckLines("Dispatch", params.x);
    CheckLines("Dispatch", params.rows);
    cuda::LaunchDependent(DispatchRowsKernel<uint4>, shape, state_->stream, call, *table);
  } else {
    cuda::LaunchDependent(DispatchRowsKernel<std::uint16_t>, shape, state_->stream, call, *table);
  }
}

}  // namespace dsa
