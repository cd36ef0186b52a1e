// Which row of the executor's adjustments holds the logits of which sequence, and what of it must
// be sent: a whole list when the sequence gets its row, then the one entry that a token changed.
// Engine thread only; part of the batch builder.
//
//   row    | ids suppressed before min_tokens | penalties and biases (scheduler/adjusted_ids.h) |
//
// Behind the rows stand entries of rows that are not drawn but given: with the largest addend that
// is a float, greedily, an id is the row's token, and its log-probability is reported.
//
// There are as many rows as sequences that a step can sample.  One keeps its row until a sequence
// that has none needs it, which takes rows of sequences that are gone before those of others.
#pragma once

#include "kernels/ops/sample.h"
#include "model/step_buffers.h"
#include "scheduler/sequence.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

namespace dsa {

inline constexpr float kGivenAddend = std::numeric_limits<float>::max();

// What a row must be able to hold: each id of a vocabulary or a context once, and what is
// suppressed beside them.
std::int64_t RowAdjustments(std::int64_t vocabulary, std::int64_t context_tokens_max,
                            std::int64_t end_ids);

class AdjustmentRows final {
 public:
  struct Config {
    std::int64_t rows;             // sequences of a step
    std::int64_t row_adjustments;  // entries of a row
    std::int64_t given_rows_max;   // of a step
    std::int64_t slots;            // Scheduler::slots()
    std::vector<TokenId> end_ids;  // the model's
  };
  explicit AdjustmentRows(Config config);

  // `sequences` are Scheduler::sequences(); valid until the last Place of the batch.
  void BeginBatch(std::span<const std::unique_ptr<Sequence>> sequences);

  // Where the sequence's next token finds its adjustments.
  struct Place {
    std::int32_t first;  // entry, counted through all rows
    std::int32_t count;
    TableUpdate update;  // in words, of those from `used` on
  };
  // Appends what is to be sent at words[used], and counts it.  Once for each sequence of a batch
  // that adjusts logits; others need no Place.
  Place Put(const Sequence& sequence, std::int32_t* words, std::int64_t& used);
  // The same for a row of the batch whose token is given.
  Place PutGiven(TokenId id, std::int32_t* words, std::int64_t& used);

 private:
  struct Row {
    SequenceId sequence{-1};
    std::int32_t slot = 0;
    std::int64_t generated = 0;  // of the sequence when the row was last right
    std::int64_t batch = 0;      // the last one that used it
  };
  std::int32_t RowFor(const Sequence& sequence);
  std::int64_t Suppressed(const Sequence& sequence) const;
  std::int64_t WriteAll(const Sequence& sequence, std::int32_t* words) const;

  const Config config_;
  std::vector<Row> rows_;
  std::vector<std::int32_t> row_of_slot_;
  std::span<const std::unique_ptr<Sequence>> sequences_;
  std::int64_t batches_ = 0;
  std::int64_t given_ = 0;  // of this batch
};

}  // namespace dsa
