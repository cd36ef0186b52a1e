//   sum[t, d] = round(partial of rank 0 + partial of rank 1 + ...)
//   whole     = part of rank 0 | part of rank 1 | ...
//   y[t]      = round(sum_k weights[t, k] * contribution[t, k] + shared[t])
//
// Of a sum that all ranks get each rank computes a share of the columns once and writes it to all,
// so that they cannot differ.
#include "kernels/comm/collectives.h"

#include "common/check.h"
#include "kernels/comm/thread_group.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/scratch.h"

#include <algorithm>
#include <cstring>

namespace dsa {
namespace {

constexpr std::int64_t kColumnsAtOnce = 256;

// Columns [first, first + count) of row t, on every rank.
void ReduceColumns(const ThreadGroup& group, std::int64_t t, std::int64_t first,
                   std::int64_t count) {
  double sums[kColumnsAtOnce];
  float rounded[kColumnsAtOnce];
  for (int rank = 0; rank < group.ranks(); ++rank) {
    const ConstAnyMatrix& partial = group.ParamsOf<AllReduceParams>(rank).partial;
    const auto* values = static_cast<const double*>(RowOf(partial, t)) + first;
    for (std::int64_t d = 0; d < count; ++d) {
      sums[d] = rank == 0 ? values[d] : sums[d] + values[d];
    }
  }
  for (std::int64_t d = 0; d < count; ++d) {
    rounded[d] = static_cast<float>(sums[d]);
  }
  for (int rank = 0; rank < group.ranks(); ++rank) {
    const AnyMatrix& sum = group.ParamsOf<AllReduceParams>(rank).sum;
    StoreRow(rounded, count, Offset(RowOf(sum, t), sum.type, first), sum.type);
  }
}

bool Has(const ExpertRange& range, std::int32_t expert) {
  return expert >= range.first && expert < range.first + range.count;
}

// Rows of a rank that are not padding.
std::int64_t LiveRows(const Vector<const std::int32_t>& live_rows, std::int64_t rows) {
  return live_rows.data == nullptr ? rows : live_rows.data[0];
}

// Ranks that have rows of their own.
std::int64_t Senders(const ThreadGroup& group, std::int64_t copies) {
  DSA_CHECK(group.ranks() % copies == 0, "collectives: {} ranks have the same rows, of {}", copies,
            group.ranks());
  return group.ranks() / copies;
}

// One row of another rank, where it has an expert in `here`.
void ReceiveRow(const DispatchParams& from, std::int64_t t, const ExpertRange& here, void* row,
                std::int32_t* row_experts) {
  const bool is_live = t < LiveRows(from.live_rows, from.x.rows);
  bool is_wanted = false;
  for (std::int64_t k = 0; k < from.experts.cols; ++k) {
    const std::int32_t expert = is_live ? from.experts.Row(t)[k] : -1;
    row_experts[k] = Has(here, expert) ? expert : -1;
    is_wanted = is_wanted || row_experts[k] >= 0;
  }
  if (is_wanted) {
    std::memcpy(row, RowOf(from.x, t), static_cast<std::size_t>(from.x.cols * SizeOf(from.x.type)));
  }
}

// The contribution of an expert to row t of `sender`, where that expert is.
const void* ContributionOf(const ThreadGroup& group, const DispatchExtents& extents,
                           std::int64_t sender, std::int64_t t, std::int64_t k,
                           std::int32_t expert) {
  const std::int64_t pair = (sender * extents.tokens + t) * extents.experts_per_token + k;
  for (int other = 0; other < group.ranks(); ++other) {
    const auto& params = group.ParamsOf<CombineParams>(other);
    if (Has(params.here, expert)) {
      return RowOf(params.contributions, pair);
    }
  }
  DSA_CHECK(false, "Combine: expert {} is on no rank of {}", expert, group.ranks());
  return nullptr;
}

}  // namespace

bool CpuBackend::Meet(const CpuSeat& seat, const CollectiveCall& call, const void* params) {
  DSA_CHECK(seat.group != nullptr, "CpuBackend: {} of a backend in no group, {} rows", call.op,
            call.rows);
  return seat.group->Meet(seat.rank, call, params);
}

// Among the ranks that split the sums of the same rows.
CpuSeat CpuBackend::PartSeat() const {
  if (seat_.group == nullptr) {
    return seat_;
  }
  const auto [part, rank] = seat_.group->PartOf(seat_.rank);
  return {.group = part, .rank = rank};
}

void CpuBackend::Compute(const AllReduceParams& params) {
  const auto [tokens, hidden] = Validate(params);
  DSA_CHECK(params.partial.type == DataType::kF64, "AllReduce: partial has type {}, expected {}",
            static_cast<int>(params.partial.type), static_cast<int>(DataType::kF64));
  const CpuSeat seat = PartSeat();
  if (!Meet(seat, {.op = "AllReduce", .rows = tokens, .cols = hidden, .type = params.sum.type},
            &params)) {
    return;
  }
  const ThreadGroup& group = *seat.group;
  const std::int64_t begin = hidden * seat.rank / group.ranks();
  const std::int64_t end = hidden * (seat.rank + 1) / group.ranks();
  pool_.ParallelFor(tokens, [&](std::int64_t first, std::int64_t last, int /*thread*/) {
    for (std::int64_t t = first; t < last; ++t) {
      for (std::int64_t d = begin; d < end; d += kColumnsAtOnce) {
        ReduceColumns(group, t, d, std::min(kColumnsAtOnce, end - d));
      }
    }
  });
  seat.group->Leave(seat.rank);
}

void CpuBackend::Compute(const AllGatherParams& params) {
  const auto [rows, cols] = Validate(params);
  const CpuSeat seat = PartSeat();
  if (!Meet(seat, {.op = "AllGather", .rows = rows, .cols = cols, .type = params.part.type},
            &params)) {
    return;
  }
  const ThreadGroup& group = *seat.group;
  std::int64_t before = 0;  // columns of the ranks before this one
  std::int64_t all = 0;
  for (int rank = 0; rank < group.ranks(); ++rank) {
    const std::int64_t part_cols = group.ParamsOf<AllGatherParams>(rank).part.cols;
    before += rank < seat.rank ? part_cols : 0;
    all += part_cols;
  }
  DSA_CHECK(all == cols, "AllGather: {} ranks have {} columns of {}", group.ranks(), all, cols);
  const auto row_bytes = static_cast<std::size_t>(params.part.cols * SizeOf(params.part.type));
  for (int rank = 0; rank < group.ranks() && row_bytes > 0; ++rank) {
    const AnyMatrix& whole = group.ParamsOf<AllGatherParams>(rank).whole;
    for (std::int64_t r = 0; r < rows; ++r) {
      std::memcpy(Offset(RowOf(whole, r), whole.type, before), RowOf(params.part, r), row_bytes);
    }
  }
  seat.group->Leave(seat.rank);
}

void CpuBackend::Compute(const DispatchParams& params) {
  const DispatchExtents extents = Validate(params);
  if (!Meet(
          seat_,
          {.op = "Dispatch", .rows = extents.tokens, .cols = extents.hidden, .type = params.x.type},
          &params)) {
    return;
  }
  const ThreadGroup& group = *seat_.group;
  const std::int64_t rows = Senders(group, params.copies) * extents.tokens;
  DSA_CHECK(params.rows.rows == rows, "Dispatch: room for {} rows, {} ranks of {}",
            params.rows.rows, group.ranks(), extents.tokens);
  pool_.ParallelFor(rows, [&](std::int64_t first, std::int64_t last, int /*thread*/) {
    for (std::int64_t row = first; row < last; ++row) {
      const int rank = static_cast<int>(row / extents.tokens * params.copies);
      ReceiveRow(group.ParamsOf<DispatchParams>(rank), row % extents.tokens, params.here,
                 RowOf(params.rows, row), params.row_experts.Row(row));
    }
  });
  seat_.group->Leave(seat_.rank);
}

void CpuBackend::Compute(const CombineParams& params) {
  const DispatchExtents extents = Validate(params);
  DSA_CHECK(params.parts.data == nullptr, "Combine: {} rows as parts, which the CPU has not",
            extents.tokens);
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  if (!Meet(seat_,
            {.op = "Combine",
             .rows = extents.tokens * extents.experts_per_token,
             .cols = extents.hidden,
             .type = params.y.type},
            &params)) {
    return;
  }
  const ThreadGroup& group = *seat_.group;
  const std::int64_t pairs = extents.tokens * extents.experts_per_token;
  DSA_CHECK(params.contributions.rows == Senders(group, params.copies) * pairs,
            "Combine: {} contributions, {} ranks of {} rows", params.contributions.rows,
            group.ranks(), extents.tokens);
  const std::int64_t sender = seat_.rank / params.copies;
  const std::int64_t live = LiveRows(params.live_rows, extents.tokens);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int thread) {
    float* const sums = scratch.Row(thread, extents.hidden);
    for (std::int64_t t = first; t < last; ++t) {
      std::fill_n(sums, extents.hidden, 0.0F);
      for (std::int64_t k = 0; k < extents.experts_per_token; ++k) {
        const std::int32_t expert = t < live ? params.experts.Row(t)[k] : -1;
        if (expert >= 0) {
          AddScaledRow(ContributionOf(group, extents, sender, t, k, expert), params.y.type,
                       params.weights.Row(t)[k], extents.hidden, sums);
        }
      }
      if (params.shared.data != nullptr) {
        AddScaledRow(RowOf(params.shared, t), params.y.type, 1.0F, extents.hidden, sums);
      }
      StoreRow(sums, extents.hidden, RowOf(params.y, t), params.y.type);
    }
  });
  seat_.group->Leave(seat_.rank);
}

}  // namespace dsa
