#include "model/weight_loader.h"

#include "common/check.h"
#include "common/log.h"
#include "model/tensor_stream.h"
#include "model/weight_layout.h"
#include "model/weight_pieces.h"
#include "model/weight_reader.h"

#include <span>
#include <utility>

namespace dsa {
namespace {

TensorType StoredType(const Checkpoint& checkpoint) {
  return [&checkpoint](const TensorSpec& spec) { return checkpoint.At(spec.name).stored->type; };
}

// The pieces of every tensor.  `placed`: of each rank.
std::vector<WeightPiece> SplitAll(const Checkpoint& checkpoint,
                                  std::span<const PlacedWeights> placed) {
  std::vector<WeightPiece> pieces;
  std::vector<const PlacedTensor*> ranks(placed.size());
  for (std::size_t i = 0; i < placed.front().tensors.size(); ++i) {
    for (std::size_t rank = 0; rank < placed.size(); ++rank) {
      ranks[rank] = &placed[rank].tensors[i];
    }
    for (WeightPiece& piece : SplitTensor(checkpoint, ranks)) {
      pieces.push_back(std::move(piece));
    }
  }
  return pieces;
}

Status LoadPieces(const Checkpoint& checkpoint, std::span<const WeightPiece> pieces,
                  std::span<Backend* const> backends, LoadProgress& progress) {
  std::vector<std::int64_t> piece_bytes;
  std::int64_t bytes_total = 0;
  for (const WeightPiece& piece : pieces) {
    piece_bytes.push_back(piece.filled);
    bytes_total += piece.end - piece.begin;
  }
  WeightReader reader(checkpoint);
  std::int64_t bytes_done = 0;
  const StreamCalls calls = {
      .fill = [&](std::size_t i,
                  std::span<std::byte> target) { return reader.Fill(pieces[i], target); },
      .take =
          [&](std::size_t i, const HostBuffer& source) {
            for (const PieceCopy& copy : pieces[i].copies) {
              backends[copy.rank]->Upload(copy.target, source,
                                          static_cast<std::size_t>(copy.offset),
                                          static_cast<std::size_t>(copy.bytes));
            }
            bytes_done += pieces[i].end - pieces[i].begin;
            progress.OnBytes(bytes_done, bytes_total);
          }};
  DSA_RETURN_IF_ERROR(StreamPieces(backends, piece_bytes, calls));
  DSA_RETURN_IF_ERROR(checkpoint.CheckUnchanged());
  if (reader.odd_scales() > 0 && checkpoint.config().scale_format == ScaleFormat::kPowerOfTwo) {
    Log(LogLevel::kWarning, "weight scales are not powers of two though scale_fmt is ue8m0",
        {{"scales", reader.odd_scales()}});
  }
  return {};
}

}  // namespace

std::int64_t WeightBytes(const Checkpoint& checkpoint, const RankShape& rank) {
  ModelWeights weights;
  return WeightLayout(checkpoint.config(), rank, weights, StoredType(checkpoint)).bytes();
}

Result<DeviceWeights> LoadWeights(const Checkpoint& checkpoint, Backend& backend,
                                  LoadProgress& progress) {
  Backend* const only = &backend;
  DSA_ASSIGN_OR_RETURN(std::vector<DeviceWeights> loaded,
                       LoadRankWeights(checkpoint, {}, {&only, 1}, progress));
  return std::move(loaded.front());
}

Result<std::vector<DeviceWeights>> LoadRankWeights(const Checkpoint& checkpoint,
                                                   const RankLayout& ranks,
                                                   std::span<Backend* const> backends,
                                                   LoadProgress& progress) {
  const ModelConfig& config = checkpoint.config();
  DSA_CHECK(static_cast<std::int64_t>(backends.size()) == ranks.all_ranks(),
            "LoadRankWeights: {} backends of {} ranks", backends.size(), ranks.all_ranks());
  std::vector<DeviceWeights> loaded(backends.size());
  std::vector<PlacedWeights> placed;
  for (std::int64_t rank = 0; rank < ranks.all_ranks(); ++rank) {
    const auto index = static_cast<std::size_t>(rank);
    const WeightLayout layout(config, ShapeOf(config, {.rank = rank, .layout = ranks}),
                              loaded[index].weights, StoredType(checkpoint));
    DSA_ASSIGN_OR_RETURN(PlacedWeights of_rank, layout.Allocate(*backends[index]));
    placed.push_back(std::move(of_rank));
  }
  DSA_RETURN_IF_ERROR(LoadPieces(checkpoint, SplitAll(checkpoint, placed), backends, progress));
  for (std::size_t rank = 0; rank < placed.size(); ++rank) {
    loaded[rank].buffers = std::move(placed[rank].buffers);
  }
  return loaded;
}

}  // namespace dsa
