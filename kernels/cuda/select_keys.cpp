// SelectKeys of an fp8 cache: three kernels a tile of rows; many tiles of a prompt share the first.
//
//   PrepareIndexQueries   queries as the tensor cores read them, and cleared work memory
//   IndexScores           scores and a histogram of each row's
//   IndexSelection        the exact top k
//
// In decode RotateAndAbsorb is part of a launch as well, unless Project did it: of the last, where
// few tiles have multiprocessors that the selection leaves; of the second for 9 to 32 rows; else of
// the first.
//
// Each starts while the one before runs, and waits for what it reads of it.  The same selection as
// the default body's, whose scores have the same bits: exact products, and sums in one order.
#include "kernels/fused/select_keys.h"

#include "common/view_parts.h"
#include "kernels/cuda/attend_latent.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/index_queries.h"
#include "kernels/cuda/index_scores.h"
#include "kernels/cuda/index_selection.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/select_top_k.h"

#include <algorithm>
#include <optional>

namespace dsa {
namespace {

// The one place that chooses: everything else goes to the default body.
bool Takes(const SelectKeysParams& params) {
  return params.cache.format == KvFormat::kFp8 && params.q.heads > 0 &&
         params.q.heads <= cuda::kIndexScoreHeadsMax && params.k <= cuda::kIndexSelectionMax &&
         reinterpret_cast<std::uintptr_t>(params.cache.data) % 16 == 0;
}

// Rows that share their keys: those of a group; of a prompt, whose rows follow one another, as many
// as may.
int UnitRows(const PagedRows& rows, std::int64_t tokens) {
  const bool has_runs = rows.has_runs && tokens > kRowGroupMax;
  return static_cast<int>(rows.group == 1 && has_runs ? kRowGroupMax : rows.group);
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

// From its row `first` on.
Scratch RowsOf(const Scratch& scratch, std::int64_t first, int padded_heads) {
  return {.queries = scratch.queries + first * cuda::PreparedQueryBytes(padded_heads),
          .weights = scratch.weights + first * padded_heads,
          .work = scratch.work + first * cuda::kRowWorkInts};
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
  tile.scores = RowsOf(params.scores, 0, std::min(count, params.scores.rows));
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

cuda::IndexQueriesParams QueriesOf(const SelectKeysParams& rows, const Scratch& scratch) {
  return {.q = rows.q,
          .positions = rows.rows.positions,
          .table = rows.table,
          .layout = rows.layout,
          .head_weights = rows.head_weights,
          .padded_heads = cuda::PaddedIndexHeads(rows.q.heads),
          .queries = scratch.queries,
          .weights = scratch.weights,
          .work = scratch.work};
}

// Returns whether `absorbed`, unless null, was done as well.
bool SelectTile(const SelectKeysParams& tile, int unit_rows, const Scratch& scratch,
                bool is_prepared, const cuda::RotateAndAbsorbParams* absorbed,
                cudaStream_t stream) {
  const SelectTopKParams selection = SelectionOf(tile);
  (void)Validate(selection);
  const cuda::IndexQueriesParams queries = QueriesOf(tile, scratch);
  const cuda::IndexScoresParams scores = {.queries = scratch.queries,
                                          .weights = scratch.weights,
                                          .padded_heads = queries.padded_heads,
                                          .cache = tile.cache,
                                          .rows = tile.rows,
                                          .unit_rows = unit_rows,
                                          .k = tile.k,
                                          .scores = tile.scores,
                                          .work = scratch.work};
  const std::int64_t visible_max =
      tile.rows.visible_max > 0 ? tile.rows.visible_max : tile.scores.cols;
  const int cluster = cuda::IndexSelectionCluster(tile.q.rows, visible_max);
  const bool absorbs_last = absorbed != nullptr && cuda::TakesRotateAndAbsorb(*absorbed) &&
                            cuda::LeavesRoomToAbsorb(tile.q.rows, cluster, *absorbed);
  const bool absorbs_beside =
      absorbed != nullptr && !absorbs_last && cuda::TakesIndexScoresAndAbsorb(scores, *absorbed);
  const bool absorbs_first = absorbed != nullptr && !absorbs_last && !absorbs_beside &&
                             cuda::PrepareIndexQueriesAndAbsorb(queries, *absorbed, stream);
  if (!absorbs_first && !is_prepared) {
    cuda::PrepareIndexQueries(queries, stream);
  }
  if (absorbs_beside) {
    cuda::IndexScoresAndAbsorb(scores, *absorbed, stream);
  } else {
    cuda::IndexScores(scores, stream);
  }
  if (absorbs_last) {
    cuda::IndexSelectionAndAbsorb(selection, scratch.work, cluster, *absorbed, stream);
  } else if (!cuda::IndexSelectionOfFew(selection, scratch.work, stream)) {
    cuda::IndexSelection(selection, scratch.work, cluster, stream);
  }
  return absorbs_first || absorbs_beside || absorbs_last;
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
  const int unit_rows = UnitRows(params.rows, tokens);
  const bool is_one_tile = tokens <= tile;
  // Tiles of a prompt are prepared together, as many as there is scratch for.  Of others each has a
  // counter behind its rows (ScoreWorkInts), where the next tile's rows would be.
  const bool prepares_ahead = !is_one_tile && unit_rows > params.rows.group;
  const std::int64_t prepared =
      std::min(prepares_ahead ? cuda::kIndexScoreRowsMax / tile * tile : tile, tokens);
  cuda::ScratchArena arena(state_->scratch);
  const Scratch scratch = TakeScratch(arena, prepared, params.q.heads);
  arena.CheckFits("SelectKeys");
  std::optional<cuda::RotateAndAbsorbParams> absorbed;
  if (params.absorbed) {
    absorbed = {.rope = RopeOf(*params.absorbed, params.rows.positions),
                .absorb = AbsorbOf(*params.absorbed)};
    Validate(absorbed->rope);
    (void)Validate(absorbed->absorb);
  }
  bool is_absorbed = false;
  for (std::int64_t first = 0; first < tokens; first += tile) {
    if (prepares_ahead && first % prepared == 0) {
      cuda::PrepareIndexQueries(
          QueriesOf(TileOf(params, first, std::min(prepared, tokens - first)), scratch),
          state_->stream);
    }
    is_absorbed =
        SelectTile(TileOf(params, first, std::min(tile, tokens - first)), unit_rows,
                   RowsOf(scratch, first % prepared, cuda::PaddedIndexHeads(params.q.heads)),
                   prepares_ahead, absorbed && is_one_tile ? &*absorbed : nullptr, state_->stream);
  }
  if (absorbed && !is_absorbed) {
    RotateAndAbsorb(*absorbed);
  }
}

}  // namespace dsa
