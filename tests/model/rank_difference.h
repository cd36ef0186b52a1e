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

struct ReplyDifference {
  double logits = 0;         // ||got - whole|| / ||whole|| over all rows of equal inputs
  double equal_values = 0;   // share of their logits with the same bits
  bool clear_tokens = true;  // the same greedy token at every row whose margin exceeds `margin`
  double margin_lost = 0;    // the largest margin of a row whose token is another one
  double row_logits = 0;     // as `logits`, of the row that lies farthest
  bool faulty = false;       // of `got`
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

inline ReplyDifference CompareReplies(const std::vector<SequenceOutput>& got,
                                      const std::vector<SequenceOutput>& whole, float margin) {
  ReplyDifference difference;
  double square = 0;
  double norm = 0;
  std::int64_t equal = 0;
  std::int64_t all = 0;
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
      const double square_before = square;
      const double norm_before = norm;
      for (std::size_t v = 0; v < row.size(); ++v) {
        const double delta = double{row[v]} - double{expected[v]};
        square += delta * delta;
        norm += double{expected[v]} * double{expected[v]};
        equal += row[v] == expected[v] ? 1 : 0;
        ++all;
      }
      difference.row_logits = std::max(difference.row_logits,
                                       std::sqrt((square - square_before) / (norm - norm_before)));
      const auto best = std::max_element(expected.begin(), expected.end());
      const auto token = best - expected.begin();
      const float largest = std::exchange(*best, -INFINITY);
      const float ahead = largest - *std::max_element(expected.begin(), expected.end());
      if (std::max_element(row.begin(), row.end()) - row.begin() != token) {
        difference.margin_lost = std::max(difference.margin_lost, double{ahead});
        difference.clear_tokens = difference.clear_tokens && ahead <= margin;
      }
    }
  }
  difference.logits = std::sqrt(square / norm);
  difference.equal_values = static_cast<double>(equal) / static_cast<double>(all);
  return difference;
}

}  // namespace dsa::testing
