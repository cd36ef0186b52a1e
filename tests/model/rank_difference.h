// How far the replies of two runs of the same requests lie apart (ranks_cuda_test.cpp).
#pragma once

#include "tests/model/sequence_runner.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace dsa::testing {

// Four deviations: 3 of 100,000 differences of two logits move so far by roundings; one logit alone
// that is wrong moves a row of 122 by 0.13 times its error, and its margin by all of it.
inline constexpr double kClearMoves = 4.0;

struct ReplyDifference {
  double logits = 0;        // ||got - whole|| / ||whole|| over all rows of equal inputs
  double equal_values = 0;  // share of their logits with the same bits
  // Of rows that went to the same experts in all layers, as far as routes are known.
  // The same greedy token at every row whose margin exceeds `margin` and kClearMoves times what its
  // logits have moved: the deviation of a difference of two of them.
  bool clear_tokens = true;
  double margin_lost = 0;  // the largest margin of a row whose token is another one
  double moves_lost = 0;   // likewise, against what the row's logits have moved
  double row_logits = 0;   // as `logits`, of the row that lies farthest
  double rerouted = 0;     // share of the rows that went elsewhere
  bool faulty = false;     // of `got`
  // Where two tokens are nearly as likely replies may part; rows behind have other inputs, and
  // their logits say nothing.
  std::int64_t rows_apart = 0;
};

// The first position whose input token, generated before it, is another one.
inline std::int64_t FirstOtherInput(const SequenceOutput& got, const SequenceOutput& whole) {
  const auto other =
      std::mismatch(got.ids.begin(), got.ids.end(), whole.ids.begin(), whole.ids.end()).first;
  if (other == got.ids.end()) {
    return std::numeric_limits<std::int64_t>::max();
  }
  // The last row gave the last id.
  const std::int64_t last_id = whole.logits.rbegin()->first + 1;
  return last_id + 1 - (got.ids.end() - other);
}

inline bool WentElsewhere(const SequenceOutput& got, const SequenceOutput& whole,
                          std::int64_t position) {
  const auto of_got = got.routes.find(position);
  const auto of_whole = whole.routes.find(position);
  return of_got != got.routes.end() && of_whole != whole.routes.end() &&
         of_got->second != of_whole->second;
}

inline ReplyDifference CompareReplies(const std::vector<SequenceOutput>& got,
                                      const std::vector<SequenceOutput>& whole, float margin) {
  ReplyDifference difference;
  double square = 0;
  double norm = 0;
  std::int64_t equal = 0;
  std::int64_t all = 0;
  std::int64_t rows = 0;
  std::int64_t rerouted = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    difference.faulty = difference.faulty || got[i].faulty;
    const std::int64_t end = FirstOtherInput(got[i], whole[i]);
    for (const auto& [position, row] : got[i].logits) {
      const auto found = whole[i].logits.find(position);
      if (found == whole[i].logits.end()) {
        continue;  // a prefix hit of one of the two
      }
      if (position >= end) {
        ++difference.rows_apart;
        continue;
      }
      std::vector<float> expected = found->second;
      const auto values = static_cast<double>(row.size());
      const double square_before = square;
      const double norm_before = norm;
      for (std::size_t v = 0; v < row.size(); ++v) {
        const double delta = double{row[v]} - double{expected[v]};
        square += delta * delta;
        norm += double{expected[v]} * double{expected[v]};
        equal += row[v] == expected[v] ? 1 : 0;
        ++all;
      }
      ++rows;
      if (WentElsewhere(got[i], whole[i], position)) {
        ++rerouted;
        continue;
      }
      difference.row_logits = std::max(difference.row_logits,
                                       std::sqrt((square - square_before) / (norm - norm_before)));
      const auto best = std::max_element(expected.begin(), expected.end());
      const auto token = best - expected.begin();
      const float largest = std::exchange(*best, -INFINITY);
      const float ahead = largest - *std::max_element(expected.begin(), expected.end());
      if (std::max_element(row.begin(), row.end()) - row.begin() != token) {
        difference.margin_lost = std::max(difference.margin_lost, double{ahead});
        const double moved = std::sqrt(2.0 * (square - square_before) / values);
        difference.moves_lost = std::max(difference.moves_lost, double{ahead} / moved);
        difference.clear_tokens =
            difference.clear_tokens && (ahead <= margin || double{ahead} <= kClearMoves * moved);
      }
    }
  }
  difference.logits = std::sqrt(square / norm);
  difference.rerouted = static_cast<double>(rerouted) / static_cast<double>(rows);
  difference.equal_values = static_cast<double>(equal) / static_cast<double>(all);
  return difference;
}

struct RankBound {
  double logits;
  double row_logits;
  float margin;
  double rerouted;
};

// Of bfloat16 and fp8, random models: rows and those that went elsewhere 1.5 times what the CPU
// lies from itself when it only adds in another order (docs/decisions/0016-quantized-logits.md),
// over three families, both types and three seeds: 5.9e-2, and 12 of 351 rows.
inline constexpr RankBound kNarrowBound = {
    .logits = 3e-2, .row_logits = 9e-2, .margin = 0.1F, .rerouted = 0.051};

inline bool Keeps(const ReplyDifference& difference, const RankBound& bound) {
  return difference.logits < bound.logits && difference.row_logits < bound.row_logits &&
         difference.clear_tokens && difference.rerouted <= bound.rerouted && !difference.faulty;
}

}  // namespace dsa::testing
