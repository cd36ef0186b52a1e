// What the measured points say together: curves, their decomposition, the sentence a person wants,
// and what a slice of the layers says of all.
#include "server/bench/position_bench.h"

#include <algorithm>
#include <cmath>
#include <set>

#include <fmt/core.h>

namespace dsa::bench {
namespace {

// How much longer all layers take with an operator than the slice's.
double ScaleOf(Operator name, const ModelConfig& slice, const ModelConfig& whole) {
  const auto ratio = [](std::int64_t all, std::int64_t some) {
    return some > 0 ? static_cast<double>(all) / static_cast<double>(some) : 1.0;
  };
  switch (name) {
    case Operator::kEmbed:
    case Operator::kGatherRows:
    case Operator::kHead:
    case Operator::kSample: return 1;
    case Operator::kGatedMlp: return ratio(whole.dense_layers, slice.dense_layers);
    case Operator::kGate:
    case Operator::kRoutedExperts:
    case Operator::kExpertMlp:
      return ratio(whole.layers - whole.dense_layers, slice.layers - slice.dense_layers);
    default: return ratio(whole.layers, slice.layers);
  }
}

void Scale(PositionRow& row, const ModelConfig& slice, const ModelConfig& whole) {
  const double layers = static_cast<double>(whole.layers) / static_cast<double>(slice.layers);
  double known_us = 0;
  double scaled_us = 0;
  if (row.operators) {
    for (std::size_t i = 0; i < kOperatorNames.size(); ++i) {
      double& time_us = row.operators->times_us[i];
      known_us += time_us;
      time_us *= ScaleOf(static_cast<Operator>(i), slice, whole);
      scaled_us += time_us;
    }
  }
  scaled_us += (row.step_us - known_us) * layers;
  const double factor = scaled_us / row.step_us;
  for (double* us : {&row.step_us, &row.step_us_p10, &row.step_us_p90, &row.error_us}) {
    *us *= factor;
  }
  if (row.operators) {
    row.operators->step_us *= factor;
  }
}

// Of curves at the same positions; empty where they are not.
std::string SentenceOf(const std::vector<CostPoint>& sparse, const std::vector<CostPoint>& dense) {
  if (sparse.empty() || sparse.size() != dense.size()) {
    return "";
  }
  const std::optional<double> crossing = Crossing(sparse, dense);
  std::string text =
      crossing ? fmt::format("DSA is cheaper than dense from position {:.0f} on", *crossing)
               : "DSA is not cheaper than dense at any measured position";
  for (std::size_t i = 0; i < sparse.size(); ++i) {
    const double position = sparse[i].position;
    const bool named = std::abs(position - 32768) < 1024 || std::abs(position - 131072) < 4096;
    if (named || i + 1 == sparse.size()) {
      text += fmt::format("; at {:.0f} dense costs {:.2f}x", position,
                          dense[i].cost_us / sparse[i].cost_us);
    }
  }
  return text;
}

// The points that were measured of DSA and of its twin.
PositionResult MeasuredOfBoth(const PositionResult& result) {
  PositionResult common = result;
  std::erase_if(common.rows, [&](const PositionRow& row) {
    return std::none_of(result.rows.begin(), result.rows.end(), [&](const PositionRow& other) {
      return other.decode == row.decode && other.batch == row.batch &&
             other.position == row.position && other.attention != row.attention;
    });
  });
  return common;
}

}  // namespace

double PositionRow::attention_us() const {
  constexpr std::array<Operator, 9> kOfAttention = {
      Operator::kPrepareIndexerQuery, Operator::kIndexerLogits,   Operator::kSelectTopK,
      Operator::kAbsorbQuery,         Operator::kLatentAttention, Operator::kExpandValue,
      Operator::kMaskedAttention,     Operator::kSelectKeys,      Operator::kAttend};
  double us = 0;
  for (const Operator name : kOfAttention) {
    us += operators ? operators->times_us[static_cast<std::size_t>(name)] : 0;
  }
  return us;
}

PositionResult ScaledToWhole(const PositionResult& result) {
  PositionResult scaled = result;
  for (PositionRow& row : scaled.rows) {
    Scale(row, result.config, result.whole);
  }
  scaled.config = result.whole;
  scaled.is_scaled = true;
  FitCurves(scaled);
  return scaled;
}

void FitCurves(PositionResult& result) {
  result.fits.clear();
  for (const bool decode : {false, true}) {
    for (const std::int64_t batch : BatchesOf(result, decode)) {
      for (const Part part : {Part::kStep, Part::kAttention}) {
        for (const Attention attention : {Attention::kSparse, Attention::kDense}) {
          const auto curve = CurveOf(result, decode, attention, batch, part);
          const auto fit = attention == Attention::kSparse ? FitKnee(curve) : FitLine(curve);
          if (fit) {
            result.fits.push_back({.part = part,
                                   .decode = decode,
                                   .attention = attention,
                                   .batch = batch,
                                   .fit = *fit});
          }
        }
      }
    }
  }
}

std::vector<CostPoint> CurveOf(const PositionResult& result, bool decode, Attention attention,
                               std::int64_t batch, Part part) {
  std::vector<CostPoint> curve;
  for (const PositionRow& row : result.rows) {
    if (row.decode != decode || row.attention != attention || row.batch != batch) {
      continue;
    }
    const double us = part == Part::kStep ? row.step_us : row.attention_us();
    if (us > 0) {
      const auto rows = static_cast<double>(row.chunk);
      curve.push_back({.position = row.middle(),
                       .cost_us = us / rows,
                       .error_us = us / row.step_us * row.error_us / rows});
    }
  }
  std::sort(curve.begin(), curve.end(),
            [](const auto& a, const auto& b) { return a.position < b.position; });
  return curve;
}

std::vector<std::int64_t> BatchesOf(const PositionResult& result, bool decode) {
  std::set<std::int64_t> batches;
  for (const PositionRow& row : result.rows) {
    if (row.decode == decode) {
      batches.insert(row.batch);
    }
  }
  return {batches.begin(), batches.end()};
}

std::vector<std::string> PositionSentences(const PositionResult& result) {
  const PositionResult common = MeasuredOfBoth(result);
  std::vector<std::string> sentences;
  for (const bool decode : {false, true}) {
    for (const std::int64_t batch : BatchesOf(result, decode)) {
      for (const Part part : {Part::kStep, Part::kAttention}) {
        const std::string sentence =
            SentenceOf(CurveOf(common, decode, Attention::kSparse, batch, part),
                       CurveOf(common, decode, Attention::kDense, batch, part));
        if (!sentence.empty()) {
          sentences.push_back(fmt::format(
              "{}, batch {}{}: {}", PhaseName(decode), batch,
              part == Part::kAttention ? ", indexer and attention alone" : "", sentence));
        }
      }
    }
  }
  return sentences;
}

}  // namespace dsa::bench
