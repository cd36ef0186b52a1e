// What one step computes and where it lies: plain data between the engine, which builds it, and
// the model, which runs it.  The model sees rows of a batch, never a request.
#pragma once

#include "model/step_buffers.h"
#include "model/step_shape.h"

#include <cstdint>
#include <span>

namespace dsa {

// Host memory, owned by the batch builder and valid until the next batch is built.
//
// Block tables stay where the executor keeps them, one row per scheduler slot, and so do lists of
// adjusted logits, one row per sequence that is sampled: a batch carries the changes.  A batch of a
// recorded shape has rows of padding behind its own: token 0 at position 0 of a table row of their
// own (BatchBuilder::Config), sampled greedily for nobody.
struct ForwardBatch {
  StepShape shape;
  std::int64_t tokens;   // rows without padding
  std::int64_t samples;  // sampled rows without padding
  // What the device needs, as packed (InputsAt of the shape, then the words); the spans below are
  // views of it.
  std::span<const std::uint8_t> packed;
  std::span<const std::int32_t> token_ids;   // [T]
  std::span<const std::int32_t> positions;   // [T]
  std::span<const std::int64_t> slots;       // [T]  block * 64 + offset of the row's own key
  std::span<const std::int32_t> sequences;   // [T]  rows of the block tables
  std::span<const std::int32_t> logit_rows;  // [R]  rows of the batch whose logits are computed
  // Sampling: entry i draws from the logits of logit_rows[sample_rows[i]].
  std::span<const std::int32_t> sample_rows;        // [N]  in [0, R)
  std::span<const SamplingRow> sampling;            // [N]
  std::span<const TableUpdate> table_updates;       // [U]
  std::span<const TableUpdate> adjustment_updates;  // [N]
  std::span<const std::int32_t> words;              // what the updates refer to
  bool copy_logits;                                 // StepResult::logits is filled; tools only
  bool recorded;  // steps of this shape may run by Record and Replay
};

}  // namespace dsa
