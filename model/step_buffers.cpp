#include "model/step_buffers.h"

#include <algorithm>

namespace dsa {
namespace {

// Gives out arrays of one piece of memory, one behind the other.
class Carver final {
 public:
  explicit Carver(std::uint8_t* memory) : memory_(memory) {}

  template <typename T>
  Vector<T> Take(std::int64_t size) {
    T* const data = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ +=
        (size * static_cast<std::int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return {.data = data, .size = size};
  }
  template <typename T>
  Matrix<T> Take(std::int64_t rows, std::int64_t cols) {
    return {.data = Take<T>(rows * cols).data, .rows = rows, .cols = cols, .row_stride = cols};
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  static constexpr std::int64_t kAlignment = 16;  // of every array, for wide loads
  std::uint8_t* memory_;
  std::int64_t bytes_ = 0;
};

StepInputs Inputs(Carver& carver, const StepShape& shape) {
  StepInputs inputs{};
  inputs.slots = carver.Take<std::int64_t>(shape.tokens);
  inputs.sampling = carver.Take<SamplingRow>(shape.samples);
  inputs.token_ids = carver.Take<std::int32_t>(shape.tokens);
  inputs.positions = carver.Take<std::int32_t>(shape.tokens);
  inputs.sequences = carver.Take<std::int32_t>(shape.tokens);
  inputs.logit_rows = carver.Take<std::int32_t>(shape.logit_rows);
  inputs.sample_rows = carver.Take<std::int32_t>(shape.samples);
  inputs.table_updates = carver.Take<TableUpdate>(shape.table_updates);
  inputs.live_rows = carver.Take<std::int32_t>(1);
  inputs.adjustment_updates = carver.Take<TableUpdate>(shape.samples);
  return inputs;
}

void TakeZeroed(Carver& carver, const StepShape& shape, const ExpertExtents& experts,
                StepOutputs& outputs) {
  outputs.row_faults = carver.Take<std::int32_t>(shape.tokens);
  outputs.sample_faults = carver.Take<std::int32_t>(shape.samples);
  outputs.expert_pairs = carver.Take<std::int32_t>(experts.layers, experts.experts);
}

StepOutputs Outputs(Carver& carver, const StepShape& shape, const ExpertExtents& experts) {
  StepOutputs outputs{};
  TakeZeroed(carver, shape, experts, outputs);
  outputs.tokens = carver.Take<std::int32_t>(shape.samples);
  outputs.logprobs = carver.Take<float>(shape.samples);
  outputs.top_ids = carver.Take<std::int32_t>(shape.samples, kTopLogprobsMax);
  outputs.top_logprobs = carver.Take<float>(shape.samples, kTopLogprobsMax);
  return outputs;
}

}  // namespace

StepInputs InputsAt(std::uint8_t* memory, const StepShape& shape) {
  Carver carver(memory);
  StepInputs inputs = Inputs(carver, shape);
  inputs.words = carver.Take<std::int32_t>(0).data;
  return inputs;
}

std::int64_t InputBytes(const StepShape& shape) {
  Carver carver(nullptr);
  Inputs(carver, shape);
  return carver.bytes();
}

StepOutputs OutputsAt(std::uint8_t* memory, const StepShape& shape, const ExpertExtents& experts) {
  Carver carver(memory);
  return Outputs(carver, shape, experts);
}

std::int64_t OutputBytes(const StepShape& shape, const ExpertExtents& experts) {
  Carver carver(nullptr);
  Outputs(carver, shape, experts);
  return carver.bytes();
}

std::int64_t ZeroedBytes(const StepShape& shape, const ExpertExtents& experts) {
  Carver carver(nullptr);
  StepOutputs outputs{};
  TakeZeroed(carver, shape, experts, outputs);
  return carver.bytes();
}

StepResult ResultOf(const StepOutputs& outputs) {
  return {.tokens = SpanOf(outputs.tokens),
          .logprobs = SpanOf(outputs.logprobs),
          .top_ids = SpanOf(outputs.top_ids),
          .top_logprobs = SpanOf(outputs.top_logprobs),
          .row_faults = SpanOf(outputs.row_faults),
          .sample_faults = SpanOf(outputs.sample_faults),
          .expert_pairs = SpanOf(outputs.expert_pairs),
          .logits = {}};
}

const StepOutputs& HostStepOutputs::Reset(const StepShape& shape, const ExpertExtents& experts) {
  const auto bytes = static_cast<std::size_t>(OutputBytes(shape, experts));
  if (bytes > memory_.size()) {
    memory_.resize(bytes);
  }
  std::fill_n(memory_.begin(), bytes, std::uint8_t{0});
  views_ = OutputsAt(memory_.data(), shape, experts);
  std::fill_n(views_.top_ids.data, views_.top_ids.rows * views_.top_ids.cols, -1);
  result_ = ResultOf(views_);
  return views_;
}

}  // namespace dsa
