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

// One row of another rank, where it has an expert in `here`.
void ReceiveRow(const DispatchParams& from, std::int64_t t, const ExpertRange& here, void* row,
                std::int32_t* row_experts) {
  bool is_wanted = false;
  for (std::int64_t k = 0; k < from.experts.cols; ++k) {
    const std::int32_t expert = from.experts.Row(t)[k];
    row_experts[k] = Has(here, expert) ? expert : -1;
    is_wanted = is_wanted || row_experts[k] >= 0;
  }
  if (is_wanted) {
    std::memcpy(row, RowOf(from.x, t), static_cast<std::size_t>(from.x.cols * SizeOf(from.x.type)));
  }
}

// The contribution of an expert to row t of `rank`, where that expert is.
const void* ContributionOf(const ThreadGroup& group, const DispatchExtents& extents, int rank,
                           std::int64_t t, std::int64_t k, std::int32_t expert) {
  const std::int64_t pair = (rank * extents.tokens + t) * extents.experts_per_token + k;
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

bool CpuBackend::Meet(const CollectiveCall& call, const void* params) {
  DSA_CHECK(seat_.group != nullptr, "CpuBackend: {} of a backend in no group, {} rows", call.op,
            call.rows);
  return seat_.group->Meet(seat_.rank, call, params);
}

void CpuBackend::Compute(const AllReduceParams& params) {
  const auto [tokens, hidden] = Validate(params);
  DSA_CHECK(params.partial.type == DataType::kF64, "AllReduce: partial has type {}, expected {}",
            static_cast<int>(params.partial.type), static_cast<int>(DataType::kF64));
  if (!Meet({.op = "AllReduce", .rows = tokens, .cols = hidden, .type = params.sum.type},
            &params)) {
    return;
  }
  const ThreadGroup& group = *seat_.group;
  const std::int64_t begin = hidden * seat_.rank / group.ranks();
  const std::int64_t end = hidden * (seat_.rank + 1) / group.ranks();
  pool_.ParallelFor(tokens, [&](std::int64_t first, std::int64_t last, int /*thread*/) {
    for (std::int64_t t = first; t < last; ++t) {
      for (std::int64_t d = begin; d < end; d += kColumnsAtOnce) {
        ReduceColumns(group, t, d, std::min(kColumnsAtOnce, end - d));
      }
    }
  });
  seat_.group->Leave();
}

void CpuBackend::Compute(const AllGatherParams& params) {
  const auto [rows, cols] = Validate(params);
  if (!Meet({.op = "AllGather", .rows = rows, .cols = cols, .type = params.part.type}, &params)) {
    return;
  }
  const ThreadGroup& group = *seat_.group;
  std::int64_t before = 0;  // columns of the ranks before this one
  std::int64_t all = 0;
  for (int rank = 0; rank < group.ranks(); ++rank) {
    const std::int64_t part_cols = group.ParamsOf<AllGatherParams>(rank).part.cols;
    before += rank < seat_.rank ? part_cols : 0;
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
  seat_.group->Leave();
}

void CpuBackend::Compute(const DispatchParams& params) {
  const DispatchExtents extents = Validate(params);
  if (!Meet(
          {.op = "Dispatch", .rows = extents.tokens, .cols = extents.hidden, .type = params.x.type},
          &params)) {
    return;
  }
  const ThreadGroup& group = *seat_.group;
  const std::int64_t rows = group.ranks() * extents.tokens;
  DSA_CHECK(params.rows.rows == rows, "Dispatch: room for {} rows, {} ranks of {}",
            params.rows.rows, group.ranks(), extents.tokens);
  pool_.ParallelFor(rows, [&](std::int64_t first, std::int64_t last, int /*thread*/) {
    for (std::int64_t row = first; row < last; ++row) {
      const int rank = static_cast<int>(row / extents.tokens);
      ReceiveRow(group.ParamsOf<DispatchParams>(rank), row % extents.tokens, params.here,
                 RowOf(params.rows, row), params.row_experts.Row(row));
    }
  });
  seat_.group->Leave();
}

void CpuBackend::Compute(const CombineParams& params) {
  const DispatchExtents extents = Validate(params);
  const CpuScratch& scratch = ScratchFor(extents.tokens);
  if (!Meet({.op = "Combine",
             .rows = extents.tokens * extents.experts_per_token,
             .cols = extents.hidden,
             .type = params.y.type},
            &params)) {
    return;
  }
  const ThreadGroup& group = *seat_.group;
  DSA_CHECK(params.contributions.rows == group.ranks() * extents.tokens * extents.experts_per_token,
            "Combine: {} contributions, {} ranks of {} rows", params.contributions.rows,
            group.ranks(), extents.tokens);
  pool_.ParallelFor(extents.tokens, [&](std::int64_t first, std::int64_t last, int thread) {
    float* const sums = scratch.Row(thread, extents.hidden);
    for (std::int64_t t = first; t < last; ++t) {
      std::fill_n(sums, extents.hidden, 0.0F);
      for (std::int64_t k = 0; k < extents.experts_per_token; ++k) {
        const std::int32_t expert = params.experts.Row(t)[k];
        if (expert >= 0) {
          AddScaledRow(ContributionOf(group, extents, seat_.rank, t, k, expert), params.y.type,
                       params.weights.Row(t)[k], extents.hidden, sums);
        }
      }
      if (params.shared.data != nullptr) {
        AddScaledRow(RowOf(params.shared, t), params.y.type, 1.0F, extents.hidden, sums);
      }
      StoreRow(sums, extents.hidden, RowOf(params.y, t), params.y.type);
    }
  });
  seat_.group->Leave();
}

}  // namespace dsa
