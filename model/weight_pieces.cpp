#include "model/weight_pieces.h"

#include "common/check.h"
#include "common/overloaded.h"
#include "model/tensor_stream.h"

#include <algorithm>
#include <utility>
#include <variant>

namespace dsa {
namespace {

using Action = WeightPiece::Action;

// The stored tensor's extents and the element that it is made of: values, or scales.
struct StoredExtents {
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t bytes;  // of an element
};

// What a rank holds of them.
struct HeldPart {
  Part rows;
  Part cols;
  std::byte* target;
};

std::vector<HeldPart> HeldValues(std::span<const PlacedTensor* const> ranks) {
  std::vector<HeldPart> held;
  for (const PlacedTensor* const tensor : ranks) {
    held.push_back(
        {.rows = tensor->spec.held_rows, .cols = tensor->spec.held_cols, .target = tensor->values});
  }
  return held;
}

// Of every 128 rows or columns; no rank's begin inside a block.
Part BlocksOf(const Part& part) {
  DSA_CHECK(part.first % kWeightBlock == 0 || part.count == 0,
            "weights: a rank's part begins at {}, inside a block of scales", part.first);
  return {.first = part.first / kWeightBlock, .count = ScaleBlocks(part.count)};
}

std::vector<HeldPart> HeldScales(std::span<const PlacedTensor* const> ranks) {
  std::vector<HeldPart> held;
  for (const PlacedTensor* const tensor : ranks) {
    held.push_back({.rows = BlocksOf(tensor->spec.held_rows),
                    .cols = BlocksOf(tensor->spec.held_cols),
                    .target = tensor->scales});
  }
  return held;
}

// Chunks of bytes, of which each rank keeps those of its rows.
void AddRowChunks(const WeightPiece& whole, const StoredExtents& stored,
                  std::span<const HeldPart> held, std::vector<WeightPiece>& pieces) {
  const std::int64_t row_bytes = stored.cols * stored.bytes;
  for (std::int64_t begin = 0; begin < whole.end; begin += kStreamChunkBytes) {
    WeightPiece piece = whole;
    piece.begin = begin;
    piece.end = std::min(begin + kStreamChunkBytes, whole.end);
    piece.filled = piece.end - piece.begin;
    for (std::size_t rank = 0; rank < held.size(); ++rank) {
      const Part& rows = held[rank].rows;
      const std::int64_t first = std::max(piece.begin, rows.first * row_bytes);
      const std::int64_t last = std::min(piece.end, (rows.first + rows.count) * row_bytes);
      if (first < last) {
        piece.copies.push_back({.rank = rank,
                                .offset = first - piece.begin,
                                .bytes = last - first,
                                .target = held[rank].target + first - rows.first * row_bytes});
      }
    }
    pieces.push_back(std::move(piece));
  }
}

// The columns of one rank, one row behind the other, behind those of the ranks before; data ranks
// have the same ones.
void AddColumns(std::span<const HeldPart> held, const StoredExtents& stored, std::int64_t first_row,
                std::int64_t rows, WeightPiece& piece) {
  std::vector<std::int64_t> offsets;
  std::int64_t offset = 0;  // behind the columns that were cut so far
  for (std::size_t rank = 0; rank < held.size(); ++rank) {
    const std::int64_t part = held[rank].cols.count * stored.bytes;
    const auto same = std::find_if(
        held.begin(), held.begin() + static_cast<std::ptrdiff_t>(rank),
        [&](const HeldPart& other) { return part > 0 && other.cols == held[rank].cols; });
    if (same != held.begin() + static_cast<std::ptrdiff_t>(rank)) {
      offsets.push_back(offsets[static_cast<std::size_t>(same - held.begin())]);
    } else {
      DSA_CHECK(part == 0 || held[rank].cols.first * stored.bytes * rows == offset,
                "weights: the columns of rank {} begin at {}", rank, held[rank].cols.first);
      offsets.push_back(offset);
      piece.row_bytes.push_back(part);
      offset += rows * part;
    }
    if (part > 0) {
      piece.copies.push_back({.rank = rank,
                              .offset = offsets.back(),
                              .bytes = rows * part,
                              .target = held[rank].target + first_row * part});
    }
  }
  DSA_CHECK(offset == piece.filled, "weights: ranks hold {} of {} bytes", offset, piece.filled);
}

// Chunks of whole rows, which are cut into the ranks' columns.
void AddColumnChunks(const WeightPiece& whole, const StoredExtents& stored,
                     std::span<const HeldPart> held, std::vector<WeightPiece>& pieces) {
  const std::int64_t row_bytes = stored.cols * stored.bytes;
  const std::int64_t rows_max = kStreamChunkBytes / row_bytes;
  DSA_CHECK(rows_max > 0, "weights: a row of {} bytes is more than a chunk of {}", row_bytes,
            kStreamChunkBytes);
  for (std::int64_t row = 0; row < stored.rows; row += rows_max) {
    const std::int64_t rows = std::min(rows_max, stored.rows - row);
    WeightPiece piece = whole;
    piece.begin = row * row_bytes;
    piece.end = piece.begin + rows * row_bytes;
    piece.filled = piece.end - piece.begin;
    AddColumns(held, stored, row, rows, piece);
    pieces.push_back(std::move(piece));
  }
}

void AddKept(const WeightPiece& whole, const StoredExtents& stored, std::span<const HeldPart> held,
             std::vector<WeightPiece>& pieces) {
  const bool has_all_columns = std::all_of(held.begin(), held.end(), [&](const HeldPart& part) {
    return part.cols.count == stored.cols;
  });
  if (has_all_columns) {
    AddRowChunks(whole, stored, held, pieces);
  } else {
    AddColumnChunks(whole, stored, held, pieces);
  }
}

// What the ranks keep of a piece of heads: parts, one behind the other, of every head in turn.
void AddHeadCopies(std::span<const PlacedTensor* const> ranks, const ModelConfig& config,
                   WeightPiece& piece) {
  const HeadBytes bytes = BytesOfHead(config, piece.tensor->type);
  for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
    const Part& rows = ranks[rank]->spec.held_rows;
    const std::int64_t rank_first = rows.first / (config.nope + config.value);
    const std::int64_t rank_last = rank_first + rows.count / (config.nope + config.value);
    const std::int64_t first = std::max(piece.first_head, rank_first);
    const std::int64_t heads = std::min(piece.first_head + piece.heads, rank_last) - first;
    if (heads <= 0) {
      continue;
    }
    const std::int64_t before = first - piece.first_head;
    std::int64_t offset = 0;  // of the part
    const auto add = [&](std::int64_t of_head, std::byte* target) {
      if (of_head > 0) {
        piece.copies.push_back({.rank = rank,
                                .offset = offset + before * of_head,
                                .bytes = heads * of_head,
                                .target = target + (first - rank_first) * of_head});
        offset += piece.heads * of_head;
      }
    };
    add(bytes.keys, ranks[rank]->values);
    add(bytes.values, ranks[rank]->scales);
    add(bytes.value_codes, ranks[rank]->w_uv_fp8.codes);
    add(bytes.value_scales, ranks[rank]->w_uv_fp8.scales);
  }
}

// As many heads at a time as fit a chunk, as they are stored and as they become.
void AddHeads(const WeightPiece& whole, const ModelConfig& config,
              std::span<const PlacedTensor* const> ranks, std::vector<WeightPiece>& pieces) {
  const std::int64_t values = (config.nope + config.value) * kLatentWidth;  // of one head
  const std::int64_t stored = values * SizeOf(whole.tensor->type);
  const std::int64_t filled = BytesOfHead(config, whole.tensor->type).all();
  const std::int64_t heads_max = kStreamChunkBytes / std::max(stored, filled);
  DSA_CHECK(heads_max > 0, "kv_b: {} values of a head are more than a chunk of {} bytes", values,
            kStreamChunkBytes);
  for (std::int64_t head = 0; head < config.heads; head += heads_max) {
    WeightPiece piece = whole;
    piece.first_head = head;
    piece.heads = std::min(heads_max, config.heads - head);
    piece.begin = head * stored;
    piece.end = piece.begin + piece.heads * stored;
    piece.filled = piece.heads * filled;
    AddHeadCopies(ranks, config, piece);
    pieces.push_back(std::move(piece));
  }
}

}  // namespace

HeadBytes BytesOfHead(const ModelConfig& config, DataType stored) {
  const std::int64_t row_bytes = kLatentWidth * SizeOf(config.activation_type);
  const std::int64_t codes =
      KeepsFp8Values(config, stored) ? config.value * kLatentWidth : std::int64_t{0};
  return {.keys = config.nope * row_bytes,
          .values = config.value * row_bytes,
          .value_codes = codes,
          .value_scales = codes / (kWeightBlock * kWeightBlock) * 4};
}

std::string ScalesName(const TensorSpec& spec) {
  return spec.name + "_scale_inv";
}

std::vector<WeightPiece> SplitTensor(const Checkpoint& checkpoint,
                                     std::span<const PlacedTensor* const> ranks) {
  std::vector<WeightPiece> pieces;
  const PlacedTensor& tensor = *ranks.front();
  const TensorSpec& spec = tensor.spec;
  const CheckpointTensor stored = checkpoint.At(spec.name);
  WeightPiece whole = {.action = Action::kCopy,
                       .tensor = &tensor,
                       .stored = stored,
                       .begin = 0,
                       .end = stored.stored->bytes,
                       .first_head = 0,
                       .heads = 0,
                       .filled = stored.stored->bytes};
  const auto add_kept = [&] {
    AddKept(whole, {.rows = spec.rows, .cols = spec.cols, .bytes = SizeOf(tensor.type)},
            HeldValues(ranks), pieces);
    if (tensor.type == DataType::kFp8E4m3) {
      whole.action = Action::kCopyScales;
      whole.stored = checkpoint.At(ScalesName(spec));
      whole.end = whole.stored.stored->bytes;
      AddKept(whole, {.rows = ScaleBlocks(spec.rows), .cols = ScaleBlocks(spec.cols), .bytes = 4},
              HeldScales(ranks), pieces);
    }
  };
  std::visit(Overloaded{
                 [&](const VectorTarget&) {
                   whole.action = Action::kVector;
                   whole.filled = spec.rows * 4;
                   for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
                     whole.copies.push_back({.rank = rank,
                                             .offset = 0,
                                             .bytes = whole.filled,
                                             .target = ranks[rank]->values});
                   }
                   pieces.push_back(whole);
                 },
                 [&](const MatrixTarget&) { add_kept(); },
                 [&](const LinearTarget&) { add_kept(); },
                 [&](const ExpertTarget&) { add_kept(); },
                 [&](const LatentTarget&) {
                   whole.action = Action::kLatent;
                   AddHeads(whole, checkpoint.config(), ranks, pieces);
                 },
             },
             spec.target);
  return pieces;
}

}  // namespace dsa
