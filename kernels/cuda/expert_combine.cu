// Combine of ranks that see each other's memory (expert_exchange.h).
//
//   few rows   each contribution goes one way, to the rank of its row
//   parts      of few rows, where those are wanted: one of float32 from each rank with an expert of
//              the row, added in the order of ranks
//   others     Meet; each rank reads the contributions of its rows where they are; Part
//
// Contributions are added in float32 in the order of the row's gate, the shared expert's output
// last, and rounded once.
#include "kernels/comm/collectives.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/expert_exchange.cuh"

namespace dsa {
namespace {

using namespace cuda;  // NOLINT(google-build-using-namespace): its own exchange

constexpr int kAtOnce = 8;     // contributions of a row that are under way
constexpr int kPartLines = 2;  // of a thread: eight values

struct CombineCall {
  ExchangeRows own;
  const std::uint8_t* contributions;  // [S * T * K]
  std::int64_t contribution_stride;   // in bytes
  const float* parts;                 // [S * T]  in place of contributions
  std::int64_t part_stride;
  Matrix<const std::int32_t> row_experts;
  Matrix<const float> weights;
  const std::uint8_t* shared;  // null: none
  std::int64_t shared_stride;
  std::uint8_t* y;
  std::int64_t y_stride;
};

// Values of T in a line, or one.
template <typename T, int kWidth>
__device__ inline void AddScaled(float weight, const cuda::Pack<T, kWidth>& values,
                                 float (&sum)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    sum[i] = __fadd_rn(sum[i], __fmul_rn(weight, cuda::ToFloat(values.values[i])));
  }
}
// The shared expert's output, and the one rounding.
template <typename T, int kWidth>
__device__ inline void FinishRow(const CombineCall& p, std::int64_t t, std::int64_t column,
                                 float (&sum)[kWidth]) {
  if (p.shared != nullptr) {
    const auto* const shared = reinterpret_cast<const T*>(p.shared + t * p.shared_stride) + column;
    const auto values = cuda::LoadPack<kWidth>(shared);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sum[i] += cuda::ToFloat(values.values[i]);
    }
  }
  cuda::Pack<T, kWidth> rounded;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    rounded.values[i] = cuda::FromFloat<T>(sum[i]);
  }
  cuda::StorePack(reinterpret_cast<T*>(p.y + t * p.y_stride) + column, rounded);
}

// Block (c, t): line c * 224 + thread of the pairs of row t of every rank.
template <typename T>
__global__ __launch_bounds__(kExchangeThreads, 2) void CombineLinesKernel(
    const __grid_constant__ CombineCall p, const __grid_constant__ ExchangeTable table) {
  constexpr int kWidth = kLineBytes / static_cast<int>(sizeof(T));
  using Values = cuda::Pack<T, kWidth>;
  __shared__ std::int32_t given[kPeersMax][kChoicesMax];  // experts here of row t of each sender
  __shared__ int owners[kChoicesMax];                     // of the own row
  __shared__ float weights[kChoicesMax];
  cuda::StartAfterPredecessors();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int t = static_cast<int>(blockIdx.y);
  const int me = table.peers.rank;
  const int tokens = static_cast<int>(p.own.experts.rows);
  const int choices = static_cast<int>(p.own.experts.cols);
  const std::int64_t line = std::int64_t{blockIdx.x} * kExchangeThreads + thread;
  const std::int64_t lines = p.own.row_bytes / kLineBytes;
  const ExchangeLayout layout(table.peers.ranks);
  const int sender = SenderOf(table, me);
  for (int of = warp; of < Senders(table); of += kExchangeWarps) {
    given[of][lane] = lane < choices ? p.row_experts.Row(of * tokens + t)[lane] : -1;
  }
  if (warp == kExchangeWarps - 1) {
    const std::int32_t expert = lane < choices ? p.own.ExpertOf(t, lane) : -1;
    owners[lane] = OwnerOf(table, expert);
    weights[lane] = lane < choices ? p.weights.Row(t)[lane] : 0.0F;
  }
  __syncthreads();
  if (line >= lines) {
    return;
  }
  const auto contribution = [&](int of, int k) {
    const std::int64_t pair = (std::int64_t{of} * tokens + t) * choices + k;
    return reinterpret_cast<const uint4*>(p.contributions + pair * p.contribution_stride) + line;
  };
  const auto result_of = [&](int rank, int k) {
    return reinterpret_cast<uint4*>(table.boxes[rank] + layout.Results()) +
           (std::int64_t{t} * choices + k) * lines + line;
  };

  // Send.
  for (int step = 1; step <= Senders(table); ++step) {
    const int of = (sender + step) % Senders(table);  // not all to the same one
    if (of == sender && table.copies == 1) {
      continue;
    }
    for (int first = 0; first < choices; first += kAtOnce) {
      uint4 values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < choices && given[of][first + i] >= 0) {
          values[i] = *contribution(of, first + i);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < choices && given[of][first + i] >= 0) {
          const uint4 sent = Present(values[i]);
          for (int copy = 0; copy < table.copies; ++copy) {
            const int rank = of * table.copies + copy;
            if (rank != me) {
              cuda::ptx::StoreLine(result_of(rank, first + i), sent);
            }
          }
        }
      }
    }
  }

  // Receive and add.
  float sum[kWidth] = {};
  for (int first = 0; first < choices; first += kAtOnce) {
    uint4 values[kAtOnce];
    const auto owner_of = [&](int i) { return first + i < choices ? owners[first + i] : -1; };
    // Once all, then each until it has come: looks at all of them again and again would be in the
    // way of those that come.
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (owner_of(i) >= 0) {
        values[i] = owner_of(i) == me ? *contribution(sender, first + i)
                                      : cuda::ptx::LoadLine(result_of(me, first + i));
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (owner_of(i) < 0) {
        continue;
      }
      if (owner_of(i) != me) {
        uint4* const from = result_of(me, first + i);
        (void)cuda::WaitFor(table.peers, [&] {
          if (IsPresent(values[i])) {
            return true;
          }
          values[i] = cuda::ptx::LoadLine(from);
          return false;
        });
        *from = Empty();
      }
      AddScaled<T, kWidth>(weights[first + i], reinterpret_cast<const Values&>(values[i]), sum);
    }
  }
  FinishRow<T, kWidth>(p, t, line * kWidth, sum);
}

__device__ inline void AddPart(const uint4& part, bool is_first, float (&sum)[4]) {
  const float values[4] = {__uint_as_float(part.x), __uint_as_float(part.y),
                           __uint_as_float(part.z), __uint_as_float(part.w)};
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    sum[c] = is_first ? values[c] : sum[c] + values[c];
  }
}

// Block (c, t): lines 448 c + thread and 224 behind it of row t of every rank's part.
template <typename T>
__global__ __launch_bounds__(kExchangeThreads, 4) void CombinePartsKernel(
    const __grid_constant__ CombineCall p, const __grid_constant__ ExchangeTable table) {
  cuda::StartAfterPredecessors();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int t = static_cast<int>(blockIdx.y);
  const int me = table.peers.rank;
  const int tokens = static_cast<int>(p.own.experts.rows);
  const int choices = static_cast<int>(p.own.experts.cols);
  const int first_line = static_cast<int>(blockIdx.x) * kPartLines * kExchangeThreads + thread;
  const int lines = static_cast<int>(p.own.row_bytes / static_cast<std::int64_t>(sizeof(T))) / 4;
  const ExchangeLayout layout(table.peers.ranks);
  const int sender = SenderOf(table, me);
  const auto line_of = [&](int i) { return first_line + i * kExchangeThreads; };
  const auto part_of = [&](int of, int i) {
    const std::int64_t row = std::int64_t{of} * tokens + t;
    return reinterpret_cast<const uint4*>(p.parts + row * p.part_stride) + line_of(i);
  };
  const auto place_of = [&](int box, int from, int i) {
    return reinterpret_cast<uint4*>(table.boxes[box] + layout.Parts(from)) +
           std::int64_t{t} * lines + line_of(i);
  };

  // Send; what goes to the next one is read before it is known whether it does.
  const int next = (sender + 1) % Senders(table);
  uint4 sent[kPartLines];
  uint4 mine[kPartLines];
#pragma unroll
  for (int i = 0; i < kPartLines; ++i) {
    sent[i] = line_of(i) < lines ? *part_of(next, i) : uint4{};
    mine[i] = line_of(i) < lines ? *part_of(sender, i) : uint4{};
  }
  const std::int32_t own = lane < choices ? p.own.ExpertOf(t, lane) : -1;
  const int owner = OwnerOf(table, own);
  for (int step = 1; step <= Senders(table); ++step) {
    const int of = (sender + step) % Senders(table);
    if (of == sender && table.copies == 1) {
      continue;
    }
    const bool is_here = lane < choices && p.row_experts.Row(of * tokens + t)[lane] >= 0;
    if (!__any_sync(kAllLanes, is_here)) {
      continue;
    }
#pragma unroll
    for (int i = 0; i < kPartLines; ++i) {
      if (step > 1 && line_of(i) < lines) {
        sent[i] = *part_of(of, i);
      }
    }
    for (int copy = 0; copy < table.copies; ++copy) {
      const int rank = of * table.copies + copy;
#pragma unroll
      for (int i = 0; i < kPartLines; ++i) {
        if (rank != me && line_of(i) < lines) {
          cuda::ptx::StoreLine(place_of(rank, me, i), Present(sent[i]));
        }
      }
    }
  }

  // Receive and add.
  const unsigned owners = __reduce_or_sync(kAllLanes, owner < 0 ? 0U : 1U << owner);
  float sum[kPartLines][4] = {};
  bool is_first = true;
  for (int rank = 0; rank < table.peers.ranks; ++rank) {
    if ((owners >> rank & 1U) == 0) {
      continue;
    }
    uint4 part[kPartLines];
#pragma unroll
    for (int i = 0; i < kPartLines; ++i) {
      part[i] = rank == me ? mine[i] : Empty();
    }
    if (rank != me) {
      (void)cuda::WaitFor(table.peers, [&] {
        bool came = true;
#pragma unroll
        for (int i = 0; i < kPartLines; ++i) {
          if (line_of(i) < lines) {
            part[i] = cuda::ptx::LoadLine(place_of(me, rank, i));
            came = came && IsPresent(part[i]);
          }
        }
        return came;
      });
#pragma unroll
      for (int i = 0; i < kPartLines; ++i) {
        if (line_of(i) < lines) {
          *place_of(me, rank, i) = Empty();
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPartLines; ++i) {
      AddPart(part[i], is_first, sum[i]);
    }
    is_first = false;
  }
#pragma unroll
  for (int i = 0; i < kPartLines; ++i) {
    if (line_of(i) < lines) {
      FinishRow<T, 4>(p, t, std::int64_t{line_of(i)} * 4, sum[i]);
    }
  }
}

// A warp takes kWidth values per lane of a row.
template <typename T, int kWidth>
__global__ __launch_bounds__(kRowThreads) void CombineRowsKernel(
    const __grid_constant__ CombineCall p, const __grid_constant__ ExchangeTable table) {
  __shared__ cuda::Meeting meeting;
  cuda::StartAfterPredecessors();
  const unsigned number =
      cuda::Meet(table.peers, meeting, reinterpret_cast<std::uint64_t>(p.contributions), 0);
  if (meeting.failed) {
    return;
  }
  using Values = cuda::Pack<T, kWidth>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const std::int64_t tokens = p.own.experts.rows;
  const auto choices = static_cast<int>(p.own.experts.cols);
  const std::int64_t values = p.own.row_bytes / static_cast<std::int64_t>(sizeof(T));
  const std::int64_t parts = (values + kWarpSize * kWidth - 1) / (kWarpSize * kWidth);
  const int sender = SenderOf(table, table.peers.rank);
  for (std::int64_t task = std::int64_t{blockIdx.x} * kRowWarps + warp; task < tokens * parts;
       task += std::int64_t{gridDim.x} * kRowWarps) {
    const auto t = static_cast<int>(task / parts);
    const std::int64_t column = (task % parts * kWarpSize + lane) * kWidth;
    const bool has_column = column < values;
    float sum[kWidth] = {};
    for (int first = 0; first < choices; first += kAtOnce) {
      const int k = first + lane;
      const bool has_choice = lane < kAtOnce && k < choices;
      const int owner = OwnerOf(table, has_choice ? p.own.ExpertOf(t, k) : -1);
      const float weight = has_choice ? p.weights.Row(t)[k] : 0.0F;
      Values under_way[kAtOnce];
      int owners[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        owners[i] = __shfl_sync(kAllLanes, owner, i);
        if (owners[i] >= 0 && has_column) {
          const std::int64_t pair = (std::int64_t{sender} * tokens + t) * choices + first + i;
          const auto* const from = reinterpret_cast<const T*>(
              reinterpret_cast<const std::uint8_t*>(meeting.operands[owners[i]][0]) +
              pair * p.contribution_stride);
          if constexpr (kWidth > 1) {
            reinterpret_cast<uint4&>(under_way[i]) =
                __ldcg(reinterpret_cast<const uint4*>(from + column));
          } else {
            under_way[i].values[0] = __ldcg(from + column);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float scale = __shfl_sync(kAllLanes, weight, i);
        if (owners[i] >= 0 && has_column) {
          AddScaled<T, kWidth>(scale, under_way[i], sum);
        }
      }
    }
    if (has_column) {
      FinishRow<T, kWidth>(p, t, column, sum);
    }
  }
  cuda::Part(table.peers, number);
}

bool ResultsGoOneWay(const DispatchExtents& extents, std::int64_t row_bytes) {
  return RowsGoOneWay(extents, row_bytes) &&
         extents.tokens * extents.experts_per_token * row_bytes <= kExchangeResultBytes;
}

}  // namespace

void CudaBackend::Combine(const CombineParams& params) {
  const DispatchExtents extents = Validate(params);
  const std::int64_t pairs = extents.tokens * extents.experts_per_token;
  const cuda::ExchangeTable* const table =
      Exchange({.op = "Combine", .rows = pairs, .cols = extents.hidden, .type = params.y.type},
               params.here, params.copies);
  if (table == nullptr || extents.tokens == 0) {
    return;
  }
  const std::int64_t senders = table->peers.ranks / params.copies;
  const bool has_parts = params.parts.data != nullptr;
  DSA_CHECK(!has_parts || CanCombineParts(extents), "Combine: parts of {} rows of {} values",
            extents.tokens, extents.hidden);
  DSA_CHECK((has_parts || params.contributions.rows == senders * pairs) &&
                params.row_experts.rows == senders * extents.tokens,
            "Combine: {} contributions, {} rows that came, {} ranks of {} rows",
            params.contributions.rows, params.row_experts.rows, table->peers.ranks, extents.tokens);
  DSA_CHECK(state_->exchange->has_dispatched, "Combine: {} rows that were not dispatched",
            extents.tokens);
  state_->exchange->has_dispatched = false;
  const std::int64_t value_bytes = SizeOf(params.y.type);
  const CombineCall call = {
      .own = {.experts = params.experts,
              .live_rows = params.live_rows.data,
              .row_bytes = extents.hidden * value_bytes},
      .contributions = static_cast<const std::uint8_t*>(params.contributions.data),
      .contribution_stride = params.contributions.row_stride * value_bytes,
      .parts = static_cast<const float*>(params.parts.data),
      .part_stride = params.parts.row_stride,
      .row_experts = params.row_experts,
      .weights = params.weights,
      .shared = static_cast<const std::uint8_t*>(params.shared.data),
      .shared_stride = params.shared.row_stride * value_bytes,
      .y = static_cast<std::uint8_t*>(params.y.data),
      .y_stride = params.y.row_stride * value_bytes};
  const bool has_lines = HasLines(call.own.row_bytes);
  if (has_lines) {
    CheckLines("Combine", has_parts ? params.parts : params.contributions);
    CheckLines("Combine", params.y);
  }
  cuda::DispatchFloat(params.y.type, [&]<typename T>(T) {
    constexpr int kWidth = kLineBytes / static_cast<int>(sizeof(T));
    if (has_parts) {
      constexpr std::int64_t kColumns = std::int64_t{kExchangeThreads} * kPartLines * 4;
      const dim3 grid(static_cast<unsigned>((extents.hidden + kColumns - 1) / kColumns),
                      static_cast<unsigned>(extents.tokens));
      cuda::LaunchDependent(CombinePartsKernel<T>, {.grid = grid, .threads = kExchangeThreads},
                            state_->stream, call, *table);
      return;
    }
    if (ResultsGoOneWay(extents, call.own.row_bytes)) {
      cuda::LaunchDependent(
          CombineLinesKernel<T>,
          {.grid = LineGrid(extents.tokens, call.own.row_bytes), .threads = kExchangeThreads},
          state_->stream, call, *table);
      return;
    }
    const std::int64_t width = has_lines ? kWidth : 1;
    const cuda::LaunchShape shape = {
        .grid = RowBlocks(extents.tokens *
                          ((extents.hidden + kWarpSize * width - 1) / (kWarpSize * width))),
        .threads = kRowThreads};
    has_lines
        ? cuda::LaunchDependent(CombineRowsKernel<T, kWidth>, shape, state_->stream, call, *table)
        : cuda::LaunchDependent(CombineRowsKernel<T, 1>, shape, state_->stream, call, *table);
  });
}

}  // namespace dsa
