// A request's list of adjusted ids against its definition, id by id.
#include "scheduler/adjusted_ids.h"

#include "common/prng.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

struct Adjustment {
  float add = 0.0F;
  float repetition = 1.0F;
  bool operator==(const Adjustment&) const = default;
};

using Adjustments = std::map<std::int32_t, Adjustment>;

Adjustments Defined(const SamplingParams& sampling, const std::vector<TokenId>& prompt,
                    const std::vector<TokenId>& generated) {
  Adjustments defined;
  for (const LogitBias& bias : sampling.logit_bias) {
    defined[Value(bias.id)].add = bias.add;
  }
  if (sampling.repetition_penalty != 1.0F) {
    for (const auto* const ids : {&prompt, &generated}) {
      for (const TokenId id : *ids) {
        defined[Value(id)].repetition = sampling.repetition_penalty;
      }
    }
  }
  if (sampling.frequency_penalty != 0.0F || sampling.presence_penalty != 0.0F) {
    std::map<std::int32_t, std::int32_t> times;
    for (const TokenId id : generated) {
      ++times[Value(id)];
    }
    for (const auto& [id, count] : times) {
      float& add = defined[id].add;
      add = static_cast<float>(double{add} - double{sampling.frequency_penalty} * count -
                               sampling.presence_penalty);
    }
  }
  return defined;
}

Adjustments Kept(const AdjustedIds& adjusted) {
  Adjustments kept;
  for (const AdjustedIds::Entry& entry : adjusted.entries()) {
    CHECK(kept.emplace(Value(entry.id), Adjustment{entry.add, entry.repetition}).second);
  }
  return kept;
}

}  // namespace

TEST_CASE("Only what can change a logit needs a list", "[adjusted_ids]") {
  CHECK_FALSE(AdjustedIds::Needed({}));
  CHECK(AdjustedIds::Needed({.frequency_penalty = -0.5F}));
  CHECK(AdjustedIds::Needed({.presence_penalty = 0.5F}));
  CHECK(AdjustedIds::Needed({.repetition_penalty = 0.9F}));
  CHECK(AdjustedIds::Needed({.logit_bias = {{.id = TokenId{3}, .add = 1.0F}}}));
}

TEST_CASE("A list holds what its definition says after each token", "[adjusted_ids]") {
  std::uint64_t draws = 0;
  const auto between = [&](std::int32_t low, std::int32_t high) {
    const double share = CounterUniform(11, draws++);
    return low + static_cast<std::int32_t>(share * (high - low + 1));
  };
  for (int request = 0; request < 300; ++request) {
    CAPTURE(request);
    const std::int32_t ids = between(1, 50);
    // Every setting alone and with every other; ids that lie far apart share places of the table.
    const std::int32_t apart = request % 3 == 0 ? 1 << 20 : 1;
    const auto draw_id = [&] { return TokenId{between(0, ids - 1) * apart}; };
    SamplingParams sampling;
    sampling.frequency_penalty = (request & 1) != 0 ? 0.3F : 0.0F;
    sampling.presence_penalty = (request & 2) != 0 ? -0.7F : 0.0F;
    sampling.repetition_penalty = (request & 4) != 0 ? 1.3F : 1.0F;
    for (std::int32_t i = (request & 8) != 0 ? between(1, ids) : 0; i > 0; --i) {
      sampling.logit_bias.push_back(
          {.id = TokenId{(i - 1) * apart}, .add = static_cast<float>(between(-9, 9))});
    }
    std::vector<TokenId> prompt;
    for (std::int32_t i = between(1, 40); i > 0; --i) {
      prompt.push_back(draw_id());
    }
    const std::int32_t tokens_max = between(1, 40);
    AdjustedIds adjusted(sampling, prompt, tokens_max);
    std::vector<TokenId> generated;
    CHECK(Kept(adjusted) == Defined(sampling, prompt, generated));
    for (std::int32_t i = 0; i < tokens_max; ++i) {
      const std::vector<AdjustedIds::Entry> before(adjusted.entries().begin(),
                                                   adjusted.entries().end());
      generated.push_back(draw_id());
      adjusted.Count(generated.back());
      CHECK(Kept(adjusted) == Defined(sampling, prompt, generated));
      // What changed() does not name is where it was, as it was: only the rest is sent.
      for (std::size_t entry = 0; entry < adjusted.entries().size(); ++entry) {
        const AdjustedIds::Entry& now = adjusted.entries()[entry];
        const bool same = entry < before.size() && before[entry].id == now.id &&
                          before[entry].add == now.add &&
                          before[entry].repetition == now.repetition;
        CHECK((same || static_cast<std::int64_t>(entry) == adjusted.changed()));
      }
    }
  }
}

}  // namespace dsa
