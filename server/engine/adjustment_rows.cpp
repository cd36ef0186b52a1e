#include "server/engine/adjustment_rows.h"

#include "common/check.h"
#include "scheduler/validate.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

namespace dsa {
namespace {

void WriteAdjustment(const LogitAdjustment& adjustment, std::int32_t* words) {
  std::memcpy(words, &adjustment, sizeof(adjustment));
}

LogitAdjustment AdjustmentOf(const AdjustedIds::Entry& entry) {
  return {.id = Value(entry.id), .add = entry.add, .repetition = entry.repetition};
}

}  // namespace

std::int64_t RowAdjustments(std::int64_t vocabulary, std::int64_t context_tokens_max,
                            std::int64_t end_ids) {
  return std::min(vocabulary, context_tokens_max + kLogitBiasesMax) + kStopIdsMax + end_ids;
}

AdjustmentRows::AdjustmentRows(Config config) : config_(std::move(config)) {
  rows_.resize(static_cast<std::size_t>(config_.rows));
  row_of_slot_.assign(static_cast<std::size_t>(config_.slots), -1);
}

void AdjustmentRows::BeginBatch(std::span<const std::unique_ptr<Sequence>> sequences) {
  sequences_ = sequences;
  ++batches_;
  given_ = 0;
}

std::int64_t AdjustmentRows::Suppressed(const Sequence& sequence) const {
  const StopConditions& stop = sequence.request().stop;
  if (stop.min_tokens == 0) {
    return 0;
  }
  return static_cast<std::int64_t>((stop.ignore_end ? 0 : config_.end_ids.size()) +
                                   stop.stop_ids.size());
}

// The row that the sequence has, or one that it gets: of a sequence that is gone, else the one that
// was not needed for longest.
std::int32_t AdjustmentRows::RowFor(const Sequence& sequence) {
  std::int32_t& row = row_of_slot_[static_cast<std::size_t>(sequence.slot())];
  if (row >= 0 && rows_[static_cast<std::size_t>(row)].sequence == sequence.id()) {
    return row;
  }
  const auto needed = [this](const Row& one) {
    const Sequence* owner = sequences_[static_cast<std::size_t>(one.slot)].get();
    return owner != nullptr && owner->id() == one.sequence ? one.batch : 0;
  };
  const auto found = std::min_element(rows_.begin(), rows_.end(), [&](const Row& a, const Row& b) {
    return needed(a) < needed(b);
  });
  DSA_CHECK(needed(*found) < batches_, "AdjustmentRows: more than {} sequences of a step",
            rows_.size());
  *found = {.sequence = sequence.id(), .slot = sequence.slot(), .generated = -1, .batch = 0};
  row = static_cast<std::int32_t>(found - rows_.begin());
  return row;
}

AdjustmentRows::Place AdjustmentRows::Put(const Sequence& sequence, std::int32_t* words,
                                          std::int64_t& used) {
  const AdjustedIds* const adjusted = sequence.adjusted_ids();
  const std::int64_t suppressed = Suppressed(sequence);
  const std::int64_t generated = sequence.generated();
  const bool suppresses = generated < sequence.request().stop.min_tokens;
  if (adjusted == nullptr && !(suppresses && suppressed > 0)) {
    return {};
  }
  const std::int64_t entries =
      adjusted == nullptr ? 0 : static_cast<std::int64_t>(adjusted->entries().size());
  DSA_CHECK(suppressed + entries <= config_.row_adjustments,
            "AdjustmentRows: {} suppressed and {} adjusted ids, a row has {}", suppressed, entries,
            config_.row_adjustments);
  const std::int32_t index = RowFor(sequence);
  Row& row = rows_[static_cast<std::size_t>(index)];
  std::int64_t first = 0;  // of the row's entries that change
  std::int64_t count = 0;
  if (row.generated >= 0 && row.generated + 1 == generated) {
    if (adjusted != nullptr && adjusted->changed() >= 0) {
      const std::int64_t changed = adjusted->changed();
      WriteAdjustment(AdjustmentOf(adjusted->entries()[static_cast<std::size_t>(changed)]),
                      words + used);
      first = suppressed + changed;
      count = 1;
    }
  } else if (row.generated != generated) {
    count = WriteAll(sequence, words + used);
  }
  row.generated = generated;
  row.batch = batches_;
  const std::int64_t skipped = suppresses ? 0 : suppressed;
  const Place place = {
      .first = static_cast<std::int32_t>(index * config_.row_adjustments + skipped),
      .count = static_cast<std::int32_t>(suppressed - skipped + entries),
      .update = {.row = index,
                 .first = static_cast<std::int32_t>(first * kWordsPerAdjustment),
                 .count = static_cast<std::int32_t>(count * kWordsPerAdjustment),
                 .source = static_cast<std::int32_t>(used)}};
  used += count * kWordsPerAdjustment;
  return place;
}

AdjustmentRows::Place AdjustmentRows::PutGiven(TokenId id, std::int32_t* words,
                                               std::int64_t& used) {
  DSA_CHECK(given_ < config_.given_rows_max, "AdjustmentRows: more than {} given tokens",
            config_.given_rows_max);
  const std::int64_t entry = config_.rows * config_.row_adjustments + given_;
  ++given_;
  WriteAdjustment({.id = Value(id), .add = kGivenAddend, .repetition = 1.0F}, words + used);
  const Place place = {.first = static_cast<std::int32_t>(entry),
                       .count = 1,
                       .update = {.row = static_cast<std::int32_t>(entry / config_.row_adjustments),
                                  .first = static_cast<std::int32_t>(
                                      entry % config_.row_adjustments * kWordsPerAdjustment),
                                  .count = static_cast<std::int32_t>(kWordsPerAdjustment),
                                  .source = static_cast<std::int32_t>(used)}};
  used += kWordsPerAdjustment;
  return place;
}

// Returns the number of entries.
std::int64_t AdjustmentRows::WriteAll(const Sequence& sequence, std::int32_t* words) const {
  std::int64_t entries = 0;
  const auto write = [&](const LogitAdjustment& adjustment) {
    WriteAdjustment(adjustment, words + entries * kWordsPerAdjustment);
    ++entries;
  };
  const auto suppress = [&](TokenId id) {
    write({.id = Value(id), .add = -std::numeric_limits<float>::infinity(), .repetition = 1.0F});
  };
  const StopConditions& stop = sequence.request().stop;
  if (stop.min_tokens > 0) {
    if (!stop.ignore_end) {
      std::for_each(config_.end_ids.begin(), config_.end_ids.end(), suppress);
    }
    std::for_each(stop.stop_ids.begin(), stop.stop_ids.end(), suppress);
  }
  if (const AdjustedIds* const adjusted = sequence.adjusted_ids(); adjusted != nullptr) {
    for (const AdjustedIds::Entry& entry : adjusted->entries()) {
      write(AdjustmentOf(entry));
    }
  }
  return entries;
}

}  // namespace dsa
