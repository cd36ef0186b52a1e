#include "model/weight_loader.h"

#include "common/log.h"
#include "model/tensor_stream.h"
#include "model/weight_layout.h"
#include "model/weight_reader.h"

#include <span>
#include <utility>

namespace dsa {
namespace {

using Action = WeightPiece::Action;

TensorType StoredType(const Checkpoint& checkpoint) {
  return [&checkpoint](const TensorSpec& spec) { return checkpoint.At(spec.name).stored->type; };
}

// Copies what a piece has become to where its tensor lies.
void Upload(Backend& backend, const ModelConfig& config, const WeightPiece& piece,
            const HostBuffer& source) {
  const PlacedTensor& tensor = *piece.tensor;
  const auto filled = static_cast<std::size_t>(piece.filled);
  switch (piece.action) {
    case Action::kCopy: backend.Upload(tensor.values + piece.begin, source, 0, filled); return;
    case Action::kCopyScales:
      backend.Upload(tensor.scales + piece.begin, source, 0, filled);
      return;
    case Action::kVector: backend.Upload(tensor.values, source, 0, filled); return;
    case Action::kLatent: {
      const std::int64_t row_bytes = kLatentWidth * SizeOf(config.activation_type);
      const auto key_bytes = static_cast<std::size_t>(piece.heads * config.nope * row_bytes);
      backend.Upload(tensor.values + piece.first_head * config.nope * row_bytes, source, 0,
                     key_bytes);
      backend.Upload(tensor.scales + piece.first_head * config.value * row_bytes, source, key_bytes,
                     filled - key_bytes);
      return;
    }
  }
}

}  // namespace

std::int64_t WeightBytes(const Checkpoint& checkpoint) {
  ModelWeights weights;
  return WeightLayout(checkpoint.config(), weights, StoredType(checkpoint)).bytes();
}

Result<DeviceWeights> LoadWeights(const Checkpoint& checkpoint, Backend& backend,
                                  LoadProgress& progress) {
  const ModelConfig& config = checkpoint.config();
  DeviceWeights loaded;
  const WeightLayout layout(config, loaded.weights, StoredType(checkpoint));
  DSA_ASSIGN_OR_RETURN(PlacedWeights placed, layout.Allocate(backend));
  std::vector<WeightPiece> pieces;
  for (const PlacedTensor& tensor : placed.tensors) {
    for (const WeightPiece& piece : SplitTensor(checkpoint, tensor)) {
      pieces.push_back(piece);
    }
  }
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
            Upload(backend, config, pieces[i], source);
            bytes_done += pieces[i].end - pieces[i].begin;
            progress.OnBytes(bytes_done, bytes_total);
          }};
  DSA_RETURN_IF_ERROR(StreamPieces(backend, piece_bytes, calls));
  DSA_RETURN_IF_ERROR(checkpoint.CheckUnchanged());
  if (reader.odd_scales() > 0 && config.scale_format == ScaleFormat::kPowerOfTwo) {
    Log(LogLevel::kWarning, "weight scales are not powers of two though scale_fmt is ue8m0",
        {{"scales", reader.odd_scales()}});
  }
  loaded.buffers = std::move(placed.buffers);
  return loaded;
}

}  // namespace dsa
