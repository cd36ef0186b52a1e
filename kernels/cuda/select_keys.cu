// SelectKeys of an fp8 cache: three kernels a tile of rows.
//
//   PrepareKernel    queries as the tensor cores read them, and cleared work memory: a warp a row
//   and
//                    head.  Everything queued before it has ended when it begins its work
//   IndexScores      scores and a histogram of each row's
//   IndexSelection   the exact top k
//
// Each starts while the one before runs, and waits for what it reads of it.  The same selection as
// the default body's, whose scores have the same bits: exact products, and sums in one order.
#include "common/view_parts.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/index_products.cuh"
#include "kernels/cuda/index_scores.h"
#include "kernels/cuda/index_selection.h"
#include "kernels/cuda/indexer_vector.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/score_order.cuh"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/fused/select_keys.h"
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/select_top_k.h"

#include <algorithm>

namespace dsa {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * cuda::kWarpSize;

struct PrepareParams {
  ConstAnyTensor3 q;
  Vector<const std::int32_t> positions;
  RopeTable table;
  RopeLayout layout;
  ConstAnyMatrix head_weights;
  float factor;  // of all head weights
  int padded_heads;
  std::uint8_t* queries;  // in the order of QueryPlace
  float* weights;
  std::int32_t* work;
};

// A lane has columns 4 lane .. 4 lane + 3; a warp, heads a grid's height of warps apart.
template <typename T>
__global__ __launch_bounds__(kThreads) void PrepareKernel(const __grid_constant__ PrepareParams p) {
  cuda::ptx::WaitForPredecessors();
  cuda::ptx::AllowSuccessor();  // not earlier: IndexScores relies on it
  const std::int64_t row = blockIdx.x;
  const int warps = static_cast<int>(gridDim.y) * kWarps;  // of the row
  const int first =
      static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const auto heads = static_cast<int>(p.q.heads);
  const T* q = static_cast<const T*>(p.q.data) + row * p.q.row_stride;
  cuda::IndexerPart next{};
  if (first < heads) {
    cuda::LoadIndexerPart(q + first * p.q.head_stride, lane, next);
  }
  const int thread = first * cuda::kWarpSize + lane;  // of the row
  for (int i = thread; i < cuda::kRowWorkInts; i += warps * cuda::kWarpSize) {
    p.work[row * cuda::kRowWorkInts + i] = 0;
  }
  if (row == 0 && thread == 0) {
    p.work[std::int64_t{gridDim.x} * cuda::kRowWorkInts] = 0;
  }

  std::uint8_t* query = p.queries + row * cuda::PreparedQueryBytes(p.padded_heads);
  for (int head = first; head < p.padded_heads; head += warps) {
    cuda::IndexerPart part;
    memcpy(part, next, sizeof(part));
    if (head + warps < heads) {  // on its way while this one is turned
      cuda::LoadIndexerPart(q + (head + warps) * p.q.head_stride, lane, next);
    }
    unsigned codes_word = 0;
    float weight = 0.0F;
    if (head < heads) {
      cuda::RotateByPosition<T>(part, lane, p.table, p.positions.data[row], p.layout);
      cuda::RotateByHadamard<T>(part, lane);
      cuda::IndexerCodes codes;
      const float scale = cuda::QuantizeIndexerPart(part, codes);
      memcpy(&codes_word, codes.values, sizeof(codes_word));
      const float head_weight =
          static_cast<const float*>(p.head_weights.data)[row * p.head_weights.row_stride + head];
      weight = head_weight * p.factor * scale * 0.5F;
    }
    *reinterpret_cast<unsigned*>(query + cuda::QueryPlace(head, lane)) = codes_word;
    if (lane == 0) {
      p.weights[row * p.padded_heads + cuda::WeightPlace(head)] = weight;
    }
  }
}

// The one place that chooses: everything else goes to the default body.
bool Takes(const SelectKeysParams& params) {
  return params.cache.format == KvFormat::kFp8 && params.q.heads > 0 &&
         params.q.heads <= cuda::kIndexScoreHeadsMax && params.k <= cuda::kIndexSelectionMax &&
         reinterpret_cast<std::uintptr_t>(params.cache.data) % 16 == 0 &&
         cuda::HasAlignedScores(AsConst(params.scores));
}

// Rows that share their keys: those of a group; of a prefill, whose rows follow one another, as
// many as may.  More rows than decode has are one.
int UnitRows(const PagedRows& rows, std::int64_t tokens) {
  constexpr std::int64_t kDecodeRowsMax = 256;
  return static_cast<int>(rows.group == 1 && tokens > kDecodeRowsMax ? kRowGroupMax : rows.group);
}

struct Scratch {
  std::uint8_t* queries;
  float* weights;
  std::int32_t* work;
};
Scratch TakeScratch(cuda::ScratchArena& arena, std::int64_t rows, std::int64_t heads) {
  const int padded_heads = cuda::PaddedIndexHeads(heads);
  return {.queries = arena.Take<std::uint8_t>(rows * cuda::PreparedQueryBytes(padded_heads)),
          .weights = arena.Take<float>(rows * padded_heads),
          .work = arena.Take<std::int32_t>(cuda::ScoreWorkInts(rows))};
}

// Rows [first, first + count) of the call.
SelectKeysParams TileOf(const SelectKeysParams& params, std::int64_t first, std::int64_t count) {
  SelectKeysParams tile = params;
  tile.q = RowsOfAny(params.q, first, count);
  tile.head_weights = RowsOfAny(params.head_weights, first, count);
  tile.rows = RowsOf(params.rows, first, count);
  tile.slots = RowsOf(params.slots, first, count);
  tile.mask = RowsOf(params.mask, first, count);
  tile.counts = RowsOf(params.counts, first, count);
  tile.faults = RowsOf(params.faults, first, count);
  tile.scores = RowsOf(params.scores, 0, count);
  return tile;
}

SelectTopKParams SelectionOf(const SelectKeysParams& tile) {
  return {.scores = AsConst(tile.scores),
          .rows = tile.rows,
          .k = tile.k,
          .slots = tile.slots,
          .mask = tile.mask,
          .positions = {},
          .counts = tile.counts,
          .faults = tile.faults};
}

void SelectTile(const SelectKeysParams& tile, int unit_rows, const Scratch& scratch,
                cudaStream_t stream) {
  const SelectTopKParams selection = SelectionOf(tile);
  (void)Validate(selection);
  const int padded_heads = cuda::PaddedIndexHeads(tile.q.heads);
  const PrepareParams prepare{
      .q = tile.q,
      .positions = tile.rows.positions,
      .table = tile.table,
      .layout = tile.layout,
      .head_weights = tile.head_weights,
      .factor = static_cast<float>(
          1.0 / std::sqrt(static_cast<double>(tile.q.heads) * static_cast<double>(kIndexerValues))),
      .padded_heads = padded_heads,
      .queries = scratch.queries,
      .weights = scratch.weights,
      .work = scratch.work};
  // Few rows are spread out for the latency; of many, a block has one.
  const int blocks_each = tile.q.rows > 2 * cuda::kMultiprocessors ? 1 : padded_heads / kWarps;
  const dim3 grid(static_cast<unsigned>(tile.q.rows), static_cast<unsigned>(blocks_each));
  cuda::DispatchFloat(tile.q.type, [&]<typename T>(T) {
    cuda::LaunchDependent(PrepareKernel<T>, {.grid = grid, .threads = kThreads}, stream, prepare);
  });
  cuda::IndexScores({.queries = scratch.queries,
                     .weights = scratch.weights,
                     .padded_heads = padded_heads,
                     .cache = tile.cache,
                     .rows = tile.rows,
                     .unit_rows = unit_rows,
                     .k = tile.k,
                     .scores = tile.scores,
                     .work = scratch.work},
                    stream);
  const std::int64_t visible_max =
      tile.rows.visible_max > 0 ? tile.rows.visible_max : tile.scores.cols;
  cuda::IndexSelection(selection, scratch.work,
                       cuda::IndexSelectionCluster(tile.q.rows, visible_max), stream);
}

}  // namespace

std::int64_t cuda::SelectKeysScratchBytes(const ScratchLimits& limits) {
  if (limits.index_heads == 0) {
    return 0;
  }
  ScratchArena arena;
  TakeScratch(arena, std::min(limits.tokens_max, kIndexScoreRowsMax), limits.index_heads);
  return arena.used();
}

void CudaBackend::SelectKeys(const SelectKeysParams& params) {
  if (!Takes(params)) {
    Backend::SelectKeys(params);
    return;
  }
  const std::int64_t tokens = Validate(PrepareIndexerQueryParams{
                                           .q = params.q,
                                           .positions = params.rows.positions,
                                           .table = params.table,
                                           .layout = params.layout,
                                           .format = params.cache.format,
                                           .head_weights = params.head_weights,
                                           .queries = params.queries,
                                           .weights = params.weights,
                                       })
                                  .tokens;
  const std::int64_t rows_max = std::min(params.scores.rows, cuda::kIndexScoreRowsMax);
  const std::int64_t tile = rows_max / params.rows.group * params.rows.group;
  DSA_CHECK(tile > 0, "SelectKeys: scores of {} rows, groups of {}", params.scores.rows,
            params.rows.group);
  cuda::ScratchArena arena(state_->scratch);
  const Scratch scratch = TakeScratch(arena, std::min(tile, tokens), params.q.heads);
  arena.CheckFits("SelectKeys");
  const int unit_rows = UnitRows(params.rows, tokens);
  for (std::int64_t first = 0; first < tokens; first += tile) {
    SelectTile(TileOf(params, first, std::min(tile, tokens - first)), unit_rows, scratch,
               state_->stream);
  }
}

}  // namespace dsa
