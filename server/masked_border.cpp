#include "server/masked_border.h"

#include "kernels/kv_layout.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace dsa {
namespace {

constexpr std::int64_t kRowsMax = 1024;
constexpr int kRunsWarm = 1;  // plans products, loads kernels
constexpr int kRunsTimed = 3;

// Steps of consecutive rows of one sequence at any position.  The blocks that the rows of one step
// fill stand at every place of the table, so that a step may see far more keys than were ever
// computed: what a step costs does not follow from what keys say.
class PrefillSteps final {
 public:
  PrefillSteps(StepExecutor& executor, const Clock& clock, const MaskedBorderOptions& options,
               std::int64_t rows)
      : executor_(executor), clock_(clock), options_(options), rows_(rows) {
    const std::int64_t own_blocks = (rows + kTokensPerBlock - 1) / kTokensPerBlock;
    const std::int64_t blocks = (options.positions_max + kTokensPerBlock - 1) / kTokensPerBlock;
    for (std::int64_t i = 0; i < blocks; ++i) {
      table_.push_back(static_cast<std::int32_t>(i % own_blocks));
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      token_ids_.push_back(static_cast<std::int32_t>((i * 7 + i / 5 + 1) % options.vocabulary));
    }
  }

  // The shortest of some runs, in seconds.
  double Time(std::int64_t first_position, AttentionPath path) {
    Pack(first_position, path);
    double shortest_s = 0.0;
    for (int run = 0; run < kRunsWarm + kRunsTimed; ++run) {
      const MonotonicUs start = clock_.NowUs();
      for (std::int64_t rank = 0; rank < options_.data_ranks; ++rank) {
        executor_.OfDataRank(rank).Launch(batch_);
      }
      for (std::int64_t rank = 0; rank < options_.data_ranks; ++rank) {
        (void)executor_.OfDataRank(rank).Collect();
      }
      constexpr double kSecondsPerUs = 1e-6;
      const double taken_s = static_cast<double>(clock_.NowUs() - start) * kSecondsPerUs;
      if (run == kRunsWarm || (run > kRunsWarm && taken_s < shortest_s)) {
        shortest_s = taken_s;
      }
    }
    return shortest_s;
  }

 private:
  void Pack(std::int64_t first_position, AttentionPath path) {
    StepShape shape;
    shape.tokens = rows_;
    shape.table_updates = 1;
    shape.exchange_rows = options_.data_ranks > 1 ? rows_ : 0;
    shape.rows[static_cast<std::size_t>(path)] = rows_;
    shape.visible_max = RoundUpVisible(first_position + rows_, options_.context_max);
    const auto bytes = static_cast<std::size_t>(InputBytes(shape));
    packed_.assign(bytes + table_.size() * sizeof(std::int32_t), 0);
    const StepInputs inputs = InputsAt(packed_.data(), shape);
    inputs.live_rows.data[0] = static_cast<std::int32_t>(rows_);
    for (std::int64_t i = 0; i < rows_; ++i) {
      const std::int64_t position = first_position + i;
      inputs.token_ids.data[i] = token_ids_[static_cast<std::size_t>(i)];
      inputs.positions.data[i] = static_cast<std::int32_t>(position);
      inputs.slots.data[i] =
          std::int64_t{table_[static_cast<std::size_t>(position / kTokensPerBlock)]} *
              kTokensPerBlock +
          position % kTokensPerBlock;
      inputs.sequences.data[i] = 0;
    }
    inputs.table_updates.data[0] = {
        .row = 0, .first = 0, .count = static_cast<std::int32_t>(table_.size()), .source = 0};
    std::copy(table_.begin(), table_.end(), inputs.words);
    batch_ = {.shape = shape,
              .tokens = rows_,
              .samples = 0,
              .packed = packed_,
              .token_ids = SpanOf(inputs.token_ids),
              .positions = SpanOf(inputs.positions),
              .slots = SpanOf(inputs.slots),
              .sequences = SpanOf(inputs.sequences),
              .logit_rows = {},
              .sample_rows = {},
              .sampling = {},
              .table_updates = SpanOf(inputs.table_updates),
              .adjustment_updates = {},
              .words = {inputs.words, table_.size()},
              .copy_logits = false,
              .recorded = false};
  }

  StepExecutor& executor_;
  const Clock& clock_;
  const MaskedBorderOptions options_;
  const std::int64_t rows_;
  std::vector<std::int32_t> table_;
  std::vector<std::int32_t> token_ids_;
  std::vector<std::uint8_t> packed_;
  ForwardBatch batch_{};
};

}  // namespace

std::int64_t BorderOf(const PrefillRates& near, const PrefillRates& far,
                      std::int64_t positions_max) {
  const auto lost_s = [](const PrefillRates& rates) {  // per masked row
    return 1.0 / rates.masked_per_s - 1.0 / rates.absorbed_per_s;
  };
  const std::int64_t units_max = positions_max / kMaskedBorderUnit;
  const double slope =
      (lost_s(far) - lost_s(near)) / static_cast<double>(far.position - near.position);
  if (slope <= 0.0) {  // masked rows never get slower than the others, or always are
    return lost_s(far) < 0.0 && lost_s(near) < 0.0 ? units_max * kMaskedBorderUnit : 0;
  }
  const double crossing = static_cast<double>(near.position) - lost_s(near) / slope;
  const double units = std::round(crossing / static_cast<double>(kMaskedBorderUnit));
  return static_cast<std::int64_t>(std::clamp(units, 0.0, static_cast<double>(units_max))) *
         kMaskedBorderUnit;
}

MaskedBorder MeasureMaskedBorder(StepExecutor& executor, const Clock& clock,
                                 const MaskedBorderOptions& options) {
  const bool selects = options.attention == AttentionMode::kSparse;
  const std::int64_t rows = std::min({options.rows_max, kRowsMax, options.positions_max});
  // The first row that selects, or the first of all; and as far as there is room.
  const std::int64_t first_near =
      selects ? (options.index_topk + kTokensPerBlock - 1) / kTokensPerBlock * kTokensPerBlock : 0;
  const std::int64_t first_far = (options.positions_max - rows) / kTokensPerBlock * kTokensPerBlock;
  if (first_far - first_near < kMaskedBorderUnit) {
    return {};
  }
  PrefillSteps steps(executor, clock, options, rows);
  const auto rates = [&](std::int64_t first) {
    const auto of = [&](AttentionPath path) {
      return static_cast<double>(rows) / steps.Time(first, path);
    };
    return PrefillRates{
        .position = first + rows / 2,
        .masked_per_s = of(selects ? AttentionPath::kMaskedSelected : AttentionPath::kMaskedAll),
        .absorbed_per_s = of(selects ? AttentionPath::kSparse : AttentionPath::kDense)};
  };
  MaskedBorder border;
  border.near = rates(first_near);
  border.far = rates(first_far);
  border.until = BorderOf(border.near, border.far, options.positions_max);
  return border;
}

}  // namespace dsa
