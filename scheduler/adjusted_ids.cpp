#include "scheduler/adjusted_ids.h"

#include "common/check.h"

#include <bit>

namespace dsa {
namespace {

bool HasPenalties(const SamplingParams& sampling) {
  return sampling.frequency_penalty != 0.0F || sampling.presence_penalty != 0.0F ||
         sampling.repetition_penalty != 1.0F;
}

}  // namespace

bool AdjustedIds::Needed(const SamplingParams& sampling) {
  return HasPenalties(sampling) || !sampling.logit_bias.empty();
}

AdjustedIds::AdjustedIds(const SamplingParams& sampling, std::span<const TokenId> prompt,
                         std::int64_t tokens_max)
    : frequency_(sampling.frequency_penalty),
      presence_(sampling.presence_penalty),
      repetition_(sampling.repetition_penalty) {
  std::size_t ids_max = sampling.logit_bias.size();
  if (HasPenalties(sampling)) {
    ids_max += static_cast<std::size_t>(tokens_max);
  }
  if (repetition_ != 1.0F) {
    ids_max += prompt.size();
  }
  entries_.reserve(ids_max);
  generated_.reserve(ids_max);
  biases_.reserve(sampling.logit_bias.size());
  table_.assign(2 * std::bit_ceil(ids_max + 1), -1);
  for (const LogitBias& bias : sampling.logit_bias) {
    Entry& entry = entries_[static_cast<std::size_t>(FindOrAdd(bias.id))];
    DSA_CHECK(entries_.size() == biases_.size() + 1, "AdjustedIds: id {} has two biases",
              Value(bias.id));
    biases_.push_back(bias.add);
    entry.add = bias.add;
  }
  if (repetition_ != 1.0F) {
    for (const TokenId id : prompt) {
      entries_[static_cast<std::size_t>(FindOrAdd(id))].repetition = repetition_;
    }
  }
}

void AdjustedIds::Count(TokenId id) {
  changed_ = -1;
  const bool counts = frequency_ != 0.0F || presence_ != 0.0F;
  if (!counts && repetition_ == 1.0F) {
    return;
  }
  const std::int64_t index = FindOrAdd(id);
  const auto place = static_cast<std::size_t>(index);
  const std::int32_t times = ++generated_[place];
  if (!counts && entries_[place].repetition == repetition_) {
    return;
  }
  const double bias = place < biases_.size() ? biases_[place] : 0.0F;
  entries_[place].add = static_cast<float>(bias - double{frequency_} * times - presence_);
  entries_[place].repetition = repetition_;
  changed_ = index;
}

// Where the id stands in the table, or where it would.
std::int64_t AdjustedIds::PlaceOf(TokenId id) const {
  constexpr std::uint32_t kSpread = 0x9E3779B1U;
  const std::size_t last = table_.size() - 1;
  const std::uint32_t spread = static_cast<std::uint32_t>(Value(id)) * kSpread;
  std::size_t place = spread & last;
  while (table_[place] >= 0 && entries_[static_cast<std::size_t>(table_[place])].id != id) {
    place = (place + 1) & last;
  }
  return static_cast<std::int64_t>(place);
}

std::int64_t AdjustedIds::FindOrAdd(TokenId id) {
  std::int32_t& entry = table_[static_cast<std::size_t>(PlaceOf(id))];
  if (entry < 0) {
    DSA_CHECK(entries_.size() < entries_.capacity(), "AdjustedIds: more than {} ids",
              entries_.size());
    entry = static_cast<std::int32_t>(entries_.size());
    entries_.push_back({.id = id, .add = 0.0F, .repetition = 1.0F});
    generated_.push_back(0);
  }
  return entry;
}

}  // namespace dsa
