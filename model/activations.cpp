#include "model/activations.h"

#include <utility>

namespace dsa {

Result<Activations> Activations::Create(Backend& backend, const WorkspacePlan& plan,
                                        DataType type) {
  Activations activations;
  activations.bytes_ = plan.bytes;
  activations.mask_words_ = plan.mask_words;
  activations.type_ = type;
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < plan.bytes.size(); ++i) {
    activations.offsets_.at(i) = offset;
    offset += (plan.bytes.at(i) + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  }
  DSA_ASSIGN_OR_RETURN(activations.memory_, backend.Allocate(static_cast<std::size_t>(offset)));
  return activations;
}

AnyMatrix Activations::AsActivation(Buffer buffer, std::int64_t rows, std::int64_t cols) const {
  return {.data = At(buffer, rows * cols * SizeOf(type_)),
          .type = type_,
          .rows = rows,
          .cols = cols,
          .row_stride = cols};
}

std::int64_t Activations::ScoreRows(std::int64_t visible) const {
  const std::int64_t bytes = bytes_.at(static_cast<std::size_t>(Buffer::kScores));
  return bytes / (visible * static_cast<std::int64_t>(sizeof(float)));
}

void* Activations::At(Buffer buffer, std::int64_t bytes) const {
  const auto index = static_cast<std::size_t>(buffer);
  DSA_CHECK(bytes <= bytes_.at(index), "Activations: buffer {} holds {} bytes, {} wanted",
            static_cast<int>(index), bytes_.at(index), bytes);
  return memory_.As<std::uint8_t>() + offsets_.at(index);
}

}  // namespace dsa
