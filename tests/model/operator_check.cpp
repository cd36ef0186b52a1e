#include "tests/model/operator_check.h"

#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/select_top_k.h"
#include "kernels/ops/store_indexer_key.h"
#include "kernels/ops/store_latent.h"
#include "tests/model/cache_values.h"

#include <algorithm>
#include <cmath>

#include <fmt/core.h>

namespace dsa::testing {
namespace {

std::vector<float> ReadMatrix(const ConstAnyMatrix& matrix) {
  std::vector<float> values;
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    for (std::int64_t col = 0; col < matrix.cols; ++col) {
      const std::int64_t at = row * matrix.row_stride + col;
      values.push_back(matrix.type == DataType::kF32
                           ? static_cast<const float*>(matrix.data)[at]
                           : ToFloat(static_cast<const Bf16*>(matrix.data)[at]));
    }
  }
  return values;
}

void WriteMatrix(const AnyMatrix& matrix, const float* values) {
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    for (std::int64_t col = 0; col < matrix.cols; ++col) {
      const std::int64_t at = row * matrix.row_stride + col;
      const float value = values[row * matrix.cols + col];
      if (matrix.type == DataType::kF32) {
        static_cast<float*>(matrix.data)[at] = value;
      } else {
        static_cast<Bf16*>(matrix.data)[at] = ToBf16(value);
      }
    }
  }
}

std::vector<float> RowsOfArray(const GoldenArray& array, std::int64_t first, std::int64_t rows) {
  return {array.Row(first), array.Row(first) + rows * array.row_size()};
}

}  // namespace

// float32: only the order of sums differs.  bfloat16: a value next to a rounding border may fall on
// the other side, which is one part in 2^8 of that value.
OperatorCheck::Bound OperatorCheck::RoundedBound(double unequal) const {
  return golden_.config.activation_type == DataType::kF32
             ? Bound{.relative = 1e-6, .unequal = 1.0}
             : Bound{.relative = 1e-3, .unequal = unequal};
}

void OperatorCheck::Compare(const std::string& name, const std::vector<float>& got,
                            const std::vector<float>& expected, Bound bound) {
  seen_.insert(name);
  DSA_CHECK(got.size() == expected.size(), "{}: {} values, {} golden", std::string_view(name),
            got.size(), expected.size());
  double difference = 0;
  double norm = 0;
  std::int64_t unequal = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double delta = static_cast<double>(got[i]) - expected[i];
    difference += delta * delta;
    norm += static_cast<double>(expected[i]) * expected[i];
    unequal += got[i] == expected[i] ? 0 : 1;
  }
  const double relative = std::sqrt(difference / std::max(norm, 1e-30));
  const double share = static_cast<double>(unequal) / static_cast<double>(got.size());
  if (!(relative <= bound.relative) || share > bound.unequal) {
    Violate(
        fmt::format("{}: relative error {:.3g} (allowed {:.3g}), {:.3g} of values differ "
                    "(allowed {:.3g})",
                    name, relative, bound.relative, share, bound.unequal));
  }
}

void OperatorCheck::Replace(const std::string& name, const AnyMatrix& matrix, std::int64_t first,
                            Bound bound) {
  const GoldenArray& array = Array(name);
  Compare(name, ReadMatrix(matrix), RowsOfArray(array, first, matrix.rows), bound);
  WriteMatrix(matrix, array.Row(first));
}

void OperatorCheck::RmsNorm(const RmsNormParams& params) {
  inner_.RmsNorm(params);
  const float* weight = params.weight.data;
  if (weight == layer().attention_norm.data) {
    inside_ = true;
    // What comes before this layer is not traced: from here on everything is.
    WriteMatrix(params.y, Array("x").values.data());
    AnyMatrix residual = params.residual;
    DSA_CHECK(residual.data != nullptr, "OperatorCheck: trace a layer behind the first");
    WriteMatrix(residual, Array("residual").values.data());
  } else if (weight == layer().attention.q_a_norm.data) {
    Replace("q_lat", params.y, 0, RoundedBound(0.01));
  } else if (weight == layer().ffn_norm.data) {
    // One op from golden inputs: almost every value is equal.
    Replace("ffn_x", params.y, 0, RoundedBound(0.001));
  }
}

void OperatorCheck::AfterProjection(const void* weight, const AnyMatrix& y) {
  if (weight == layer().attention.o.weight.data) {
    Replace("attention_out", y, 0, RoundedBound(0.01));
  } else if (layer().dense && weight == layer().dense->down.weight.data) {
    Replace("ffn_out", y, 0, RoundedBound(0.05));
  }
}

void OperatorCheck::Linear(const LinearParams& params) {
  inner_.Linear(params);
  AfterProjection(params.weight.data, params.y);
}

void OperatorCheck::BlockScaledLinear(const BlockScaledLinearParams& params) {
  inner_.BlockScaledLinear(params);
  AfterProjection(params.weight.data, params.y);
}

void OperatorCheck::StoreLatent(const StoreLatentParams& params) {
  inner_.StoreLatent(params);
  if (!inside_ || seen_.contains("latent")) {
    return;
  }
  const Bound bound = RoundedBound(0.001);
  std::vector<float> latents;
  std::vector<float> ropes;
  for (std::int64_t row = 0; row < params.slots.size; ++row) {
    const CachedLatent cached = ReadLatent(params.cache, params.slots.data[row]);
    latents.insert(latents.end(), cached.values.begin(), cached.values.end());
    ropes.insert(ropes.end(), cached.rope.begin(), cached.rope.end());
  }
  // A latent that rounds to the neighbouring bfloat16 may fall to the neighbouring fp8 value, one
  // part in 2^3: the share of unequal values is what counts.
  const Bound latent_bound{
      .relative = params.cache.format == KvFormat::kFp8 ? 3e-3 : bound.relative,
      .unequal = bound.unequal};
  Compare("latent", latents, Array("latent").values, latent_bound);
  Compare("k_rope", ropes, Array("k_rope").values, bound);
  for (std::int64_t row = 0; row < params.slots.size; ++row) {
    WriteLatent(params.cache, params.slots.data[row], Array("latent").Row(row),
                Array("k_rope").Row(row));
  }
}

void OperatorCheck::StoreIndexerKey(const StoreIndexerKeyParams& params) {
  inner_.StoreIndexerKey(params);
  if (!inside_ || seen_.contains("index_k")) {
    return;
  }
  std::vector<float> keys;
  for (std::int64_t row = 0; row < params.slots.size; ++row) {
    const std::vector<float> key = ReadIndexerKey(params.cache, params.slots.data[row]);
    keys.insert(keys.end(), key.begin(), key.end());
  }
  Bound bound = RoundedBound(0.001);
  if (params.cache.format == KvFormat::kFp8) {
    bound.relative = 3e-3;
  }
  Compare("index_k", keys, Array("index_k").values, bound);
  for (std::int64_t row = 0; row < params.slots.size; ++row) {
    WriteIndexerKey(params.cache, params.slots.data[row], Array("index_k").Row(row));
  }
}

// The traced head weights do not hold the query's scale; ours do.
void OperatorCheck::PrepareIndexerQuery(const PrepareIndexerQueryParams& params) {
  inner_.PrepareIndexerQuery(params);
  if (!inside_) {
    return;
  }
  first_row_ = params.positions.data[0];
  const std::int64_t heads = params.queries.heads;
  std::vector<float> products;
  std::vector<float> expected;
  for (std::int64_t row = 0; row < params.queries.rows; ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const float* golden_query = Array("index_q").Row(first_row_ + row) + head * kIndexHeadWidth;
      const float golden_weight = Array("index_w").Row(first_row_ + row)[head];
      const std::vector<float> query = ReadQuery(params.queries, row, head);
      for (std::int64_t i = 0; i < kIndexHeadWidth; ++i) {
        products.push_back(query[static_cast<std::size_t>(i)] * params.weights.Row(row)[head]);
        expected.push_back(golden_query[i] * golden_weight);
      }
      params.weights.Row(row)[head] =
          golden_weight * WriteQuery(params.queries, row, head, golden_query);
    }
  }
  const bool fp8 = params.format == KvFormat::kFp8;
  // The weight is a float32 factor of every value, so equality is not what is asked here.
  Compare("index_q", products, expected,
          {.relative = fp8 ? 5e-3 : RoundedBound(1.0).relative, .unequal = 1.0});
}

void OperatorCheck::IndexerLogits(const IndexerLogitsParams& params) {
  inner_.IndexerLogits(params);
  if (!inside_) {
    return;
  }
  seen_.insert("index_scores");
  for (std::int64_t row = 0; row < params.scores.rows; ++row) {
    const std::int64_t position = params.rows.positions.data[row];
    const float* expected = Array("index_scores").Row(position);
    float* got = params.scores.Row(row);
    float largest = 0;
    for (std::int64_t key = 0; key <= position; ++key) {
      largest = std::max(largest, std::fabs(expected[key]));
    }
    for (std::int64_t key = 0; key <= position; ++key) {
      if (!(std::fabs(got[key] - expected[key]) <= 1e-5F * largest)) {
        Violate(fmt::format("index_scores: {} for key {} of row {}, golden {}", got[key], key,
                            position, expected[key]));
        return;
      }
      got[key] = expected[key];
    }
  }
}

// From golden scores the selection is equal, ties included.
void OperatorCheck::SelectTopK(const SelectTopKParams& params) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(params.scores.rows * params.k));
  SelectTopKParams with_positions = params;
  with_positions.positions = {.data = positions.data(),
                              .rows = params.scores.rows,
                              .cols = params.k,
                              .row_stride = params.k};
  inner_.SelectTopK(with_positions);
  if (!inside_) {
    return;
  }
  seen_.insert("selected");
  for (std::int64_t row = 0; row < params.scores.rows; ++row) {
    const std::int64_t position = params.rows.positions.data[row];
    const GoldenArray& golden = Array("selected");
    std::vector<std::int32_t> expected;
    for (std::int64_t i = 0; i < golden.row_size() && golden.Row(position)[i] >= 0; ++i) {
      expected.push_back(static_cast<std::int32_t>(golden.Row(position)[i]));
    }
    const std::int32_t* got = with_positions.positions.Row(row);
    if (params.counts.data[row] != static_cast<std::int32_t>(expected.size()) ||
        !std::equal(expected.begin(), expected.end(), got)) {
      Violate(fmt::format("selected: another set for row {}", position));
      return;
    }
  }
}

void OperatorCheck::LatentAttention(const LatentAttentionParams& params) {
  inner_.LatentAttention(params);
  first_row_ = params.rows.positions.data[0];
}

void OperatorCheck::ExpandValue(const ExpandValueParams& params) {
  inner_.ExpandValue(params);
  if (!inside_) {
    return;
  }
  const AnyMatrix output{.data = params.o.data,
                         .type = params.o.type,
                         .rows = params.o.rows,
                         .cols = params.o.heads * params.o.cols,
                         .row_stride = params.o.row_stride};
  Bound bound = RoundedBound(1.0);
  bound.relative *= 3;  // queries, probabilities, latent and output are each rounded
  Replace("attn", output, first_row_, bound);
}

void OperatorCheck::Gate(const GateParams& params) {
  inner_.Gate(params);
  if (!inside_) {
    return;
  }
  seen_.insert("experts");
  for (std::int64_t row = 0; row < params.experts.rows; ++row) {
    const float* golden = Array("experts").Row(row);
    for (std::int64_t i = 0; i < params.experts.cols; ++i) {
      if (golden[params.experts.Row(row)[i]] == 0.0F) {
        Violate(fmt::format("experts: row {} goes to expert {}", row, params.experts.Row(row)[i]));
        return;
      }
    }
  }
}

void OperatorCheck::RoutedExperts(const RoutedExpertsParams& params) {
  inner_.RoutedExperts(params);
  if (inside_) {
    Replace("ffn_out", params.y, 0, RoundedBound(0.05));
    inside_ = false;
  }
}

std::vector<std::string> OperatorCheck::Violations() const {
  std::vector<std::string> violations = violations_;
  std::vector<std::string> wanted = {"q_lat",         "latent", "k_rope", "attn",
                                     "attention_out", "ffn_x",  "ffn_out"};
  if (golden_.config.has_indexer()) {
    wanted.insert(wanted.end(), {"index_k", "index_q", "index_scores", "selected"});
  }
  if (layer().moe) {
    wanted.emplace_back("experts");
  }
  for (const std::string& name : wanted) {
    if (!seen_.contains(name)) {
      violations.push_back(name + ": never computed");
    }
  }
  return violations;
}

}  // namespace dsa::testing
