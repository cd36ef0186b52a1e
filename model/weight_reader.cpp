#include "model/weight_reader.h"

#include "model/scale_check.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string>

namespace dsa {
namespace {

using Action = WeightPiece::Action;

// The stored value, before scales.
float ReadValue(const std::byte* data, DataType type, std::int64_t index) {
  switch (type) {
    case DataType::kF32: {
      float value = 0.0F;
      std::memcpy(&value, data + index * 4, sizeof(value));
      return value;
    }
    case DataType::kBf16: {
      Bf16 value{};
      std::memcpy(&value, data + index * 2, sizeof(value));
      return ToFloat(value);
    }
    case DataType::kFp8E4m3: return ToFloat(Fp8E4m3{static_cast<std::uint8_t>(data[index])});
    case DataType::kF64: break;  // of no checkpoint
  }
  return 0.0F;
}

void WriteValue(std::byte* data, DataType type, std::int64_t index, float value) {
  if (type == DataType::kF32) {
    std::memcpy(data + index * 4, &value, sizeof(value));
    return;
  }
  const Bf16 narrow = ToBf16(value);
  std::memcpy(data + index * 2, &narrow, sizeof(narrow));
}

constexpr std::int64_t kScaleCols = kLatentWidth / kWeightBlock;

// W_UV of the piece's heads as it is stored, behind what is de-quantized of them.
void CopyFp8Values(const WeightPiece& piece, const ModelConfig& config,
                   std::span<const std::byte> bytes, std::span<const float> scales,
                   std::span<std::byte> target) {
  const HeadBytes of_head = BytesOfHead(config, piece.tensor->type);
  if (of_head.value_codes == 0) {
    return;
  }
  const std::int64_t head_rows = config.nope + config.value;
  std::byte* codes = target.data() + piece.heads * (of_head.keys + of_head.values);
  std::byte* to_scales = codes + piece.heads * of_head.value_codes;
  for (std::int64_t head = 0; head < piece.heads; ++head) {
    const std::int64_t row = head * head_rows + config.nope;
    codes = std::copy_n(bytes.data() + row * kLatentWidth, of_head.value_codes, codes);
    const std::int64_t scale_row = (piece.first_head * head_rows + row) / kWeightBlock;
    const auto from = std::as_bytes(
        scales.subspan(static_cast<std::size_t>(scale_row * kScaleCols),
                       static_cast<std::size_t>(of_head.value_scales) / sizeof(float)));
    to_scales = std::copy(from.begin(), from.end(), to_scales);
  }
}

}  // namespace

Status WeightReader::Fill(const WeightPiece& piece, std::span<std::byte> target) {
  switch (piece.action) {
    case Action::kVector: return FillVector(piece, target);
    case Action::kLatent: return FillLatent(piece, target);
    case Action::kCopy:
    case Action::kCopyScales: break;
  }
  if (piece.row_bytes.empty()) {
    DSA_RETURN_IF_ERROR(checkpoint_.Read(piece.stored, piece.begin, target.data(), target.size()));
  } else {
    DSA_RETURN_IF_ERROR(FillColumns(piece, target));
  }
  return piece.action == Action::kCopyScales ? CheckScales(piece.stored, target) : Status();
}

Status WeightReader::FillColumns(const WeightPiece& piece, std::span<std::byte> target) const {
  std::vector<std::byte> bytes(target.size());
  DSA_RETURN_IF_ERROR(checkpoint_.Read(piece.stored, piece.begin, bytes.data(), bytes.size()));
  const std::int64_t stride =
      std::accumulate(piece.row_bytes.begin(), piece.row_bytes.end(), std::int64_t{0});
  const std::int64_t rows = piece.filled / stride;
  std::byte* to = target.data();
  std::int64_t column = 0;
  for (const std::int64_t part : piece.row_bytes) {
    for (std::int64_t row = 0; row < rows; ++row) {
      to = std::copy_n(bytes.data() + row * stride + column, part, to);
    }
    column += part;
  }
  return {};
}

Status WeightReader::CheckScales(const CheckpointTensor& tensor, std::span<const std::byte> bytes) {
  DSA_ASSIGN_OR_RETURN(const std::int64_t odd, CountOddScales(tensor, bytes));
  odd_scales_.fetch_add(odd, std::memory_order_relaxed);
  return {};
}

Status WeightReader::FillVector(const WeightPiece& piece, std::span<std::byte> target) const {
  std::vector<std::byte> bytes(static_cast<std::size_t>(piece.end));
  DSA_RETURN_IF_ERROR(checkpoint_.Read(piece.stored, 0, bytes.data(), bytes.size()));
  for (std::int64_t i = 0; i < piece.tensor->spec.rows; ++i) {
    WriteValue(target.data(), DataType::kF32, i, ReadValue(bytes.data(), piece.tensor->type, i));
  }
  return {};
}

// kv_b [H * (N + V), 512]: of every head, rows 0 .. N - 1 are W_UK and the others W_UV.
Status WeightReader::FillLatent(const WeightPiece& piece, std::span<std::byte> target) {
  const ModelConfig& config = checkpoint_.config();
  const DataType stored = piece.tensor->type;
  std::vector<std::byte> bytes(static_cast<std::size_t>(piece.end - piece.begin));
  DSA_RETURN_IF_ERROR(checkpoint_.Read(piece.stored, piece.begin, bytes.data(), bytes.size()));
  std::vector<float> scales;
  if (stored == DataType::kFp8E4m3) {
    const CheckpointTensor tensor = checkpoint_.At(ScalesName(piece.tensor->spec));
    scales.resize(static_cast<std::size_t>(tensor.stored->bytes) / sizeof(float));
    const auto raw = std::as_writable_bytes(std::span<float>(scales));
    DSA_RETURN_IF_ERROR(checkpoint_.Read(tensor, 0, raw.data(), raw.size()));
    if (piece.first_head == 0) {  // counted once
      DSA_RETURN_IF_ERROR(CheckScales(tensor, raw));
    }
  }
  const std::int64_t head_rows = config.nope + config.value;
  const std::int64_t first_row = piece.first_head * head_rows;
  std::int64_t key_row = 0;                            // of w_uk in target
  std::int64_t value_row = piece.heads * config.nope;  // of w_uv, behind it
  for (std::int64_t row = 0; row < piece.heads * head_rows; ++row) {
    const bool is_key = row % head_rows < config.nope;
    const std::int64_t target_row = is_key ? key_row++ : value_row++;
    const std::int64_t scale_row = (first_row + row) / kWeightBlock * kScaleCols;
    for (std::int64_t col = 0; col < kLatentWidth; ++col) {
      float value = ReadValue(bytes.data(), stored, row * kLatentWidth + col);
      if (!scales.empty()) {
        value *= scales[static_cast<std::size_t>(scale_row + col / kWeightBlock)];
      }
      WriteValue(target.data(), config.activation_type, target_row * kLatentWidth + col, value);
    }
  }
  CopyFp8Values(piece, config, bytes, scales, target);
  return {};
}

}  // namespace dsa
