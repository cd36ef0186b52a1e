// MaskedAttention against a double-precision restatement, and against the absorbed form.
#include "kernels/ops/masked_attention.h"

#include "common/view_parts.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/latent_attention.h"
#include "tests/kernels/masked_attention_testing.h"

#include <cmath>
#include <span>

namespace dsa::masked_attention_test {
namespace {

// The same attention by AbsorbQuery, LatentAttention and ExpandValue.
std::vector<float> RunAbsorbed(Backend& backend, const AttentionBatch& batch) {
  const std::int64_t tokens = batch.rows.size();
  const auto latent_shape = testing::Dense(tokens, batch.heads * 512);
  const DeviceBatch device(backend, batch);
  const auto q_latent = testing::DeviceTensor::Poisoned(backend, batch.type, latent_shape);
  const auto o_latent = testing::DeviceTensor::Poisoned(backend, batch.type, latent_shape);
  const auto output = testing::DeviceTensor::Poisoned(
      backend, batch.type, testing::Dense(tokens, batch.heads * batch.value));
  backend.AbsorbQuery({.q_nope = ColumnsOf(device.q.Heads(batch.heads), 0, batch.nope),
                       .w_uk = device.w_uk.View(),
                       .q_latent = q_latent.Heads(batch.heads)});
  backend.LatentAttention({.q_latent = q_latent.Heads(batch.heads),
                           .q_rope = ColumnsOf(device.q.Heads(batch.heads), batch.nope, 64),
                           .cache = device.cache,
                           .rows = device.rows.View(),
                           .selection = device.selection.View(),
                           .softmax_scale = batch.softmax_scale,
                           .o_latent = o_latent.Heads(batch.heads)});
  backend.ExpandValue({.o_latent = o_latent.Heads(batch.heads),
                       .w_uv = device.w_uv.View(),
                       .o = output.Heads(batch.heads)});
  return output.Download();
}

std::vector<double> Project(const AttentionBatch& batch, const float* weight, std::int64_t rows,
                            const std::vector<double>& latent) {
  std::vector<double> projected(static_cast<std::size_t>(rows), 0.0);
  for (std::size_t row = 0; row < projected.size(); ++row) {
    for (std::size_t i = 0; i < 512; ++i) {
      projected[row] += static_cast<double>(weight[row * 512 + i]) * latent[i];
    }
  }
  return testing::Rounded(batch.type, projected);
}

// One head of one row.
std::vector<double> ExpectedHead(const AttentionBatch& batch, std::int64_t row, std::int64_t head) {
  const auto nope = static_cast<std::size_t>(batch.nope);
  const float* const query = batch.q.data() + (row * batch.heads + head) * (batch.nope + 64);
  std::vector<std::vector<double>> values;
  std::vector<double> scores;
  for (const std::int32_t position : batch.Keys(row)) {
    const std::int32_t sequence = batch.rows.sequences[static_cast<std::size_t>(row)];
    const auto latent =
        testing::DecodeLatent(batch.format, batch.cache, batch.layout.Slot(sequence, position));
    const auto key =
        Project(batch, batch.w_uk.data() + head * batch.nope * 512, batch.nope, latent);
    double score = 0.0;
    for (std::size_t i = 0; i < nope + 64; ++i) {
      score += static_cast<double>(query[i]) * (i < nope ? key[i] : latent[512 + i - nope]);
    }
    scores.push_back(score * static_cast<double>(batch.softmax_scale));
    values.push_back(
        Project(batch, batch.w_uv.data() + head * batch.value * 512, batch.value, latent));
  }
  const std::vector<double> p = testing::SoftmaxExpected(batch.type, scores);
  std::vector<double> output(static_cast<std::size_t>(batch.value), 0.0);
  for (std::size_t j = 0; j < p.size(); ++j) {
    for (std::size_t i = 0; i < output.size(); ++i) {
      output[i] += p[j] * values[j][i];
    }
  }
  return testing::Rounded(batch.type, output);
}

// Keys and values of one head, expanded once for all rows of a sequence.
struct Expanded {
  std::vector<std::vector<double>> keys;
  std::vector<std::vector<double>> values;
};
Expanded Expand(const AttentionBatch& batch, std::int32_t sequence, std::int64_t head) {
  Expanded expanded;
  for (std::int64_t position = 0; position < 600; ++position) {
    const auto latent =
        testing::DecodeLatent(batch.format, batch.cache, batch.layout.Slot(sequence, position));
    expanded.keys.push_back(
        Project(batch, batch.w_uk.data() + head * batch.nope * 512, batch.nope, latent));
    expanded.keys.back().insert(expanded.keys.back().end(), latent.begin() + 512, latent.end());
    expanded.values.push_back(
        Project(batch, batch.w_uv.data() + head * batch.value * 512, batch.value, latent));
  }
  return expanded;
}

std::vector<double> ExpectedRow(const AttentionBatch& batch, const Expanded& expanded,
                                std::int64_t row, std::int64_t head) {
  const float* const query = batch.q.data() + (row * batch.heads + head) * (batch.nope + 64);
  const std::vector<std::int32_t> keys = batch.Keys(row);
  std::vector<double> output(static_cast<std::size_t>(batch.value), 0.0);
  if (keys.empty()) {
    return output;
  }
  std::vector<double> scores;
  for (const std::int32_t position : keys) {
    const std::vector<double>& key = expanded.keys[static_cast<std::size_t>(position)];
    double score = 0.0;
    for (std::size_t i = 0; i < key.size(); ++i) {
      score += static_cast<double>(query[i]) * key[i];
    }
    scores.push_back(score * static_cast<double>(batch.softmax_scale));
  }
  const std::vector<double> p = testing::SoftmaxExpected(batch.type, scores);
  for (std::size_t j = 0; j < p.size(); ++j) {
    for (std::size_t i = 0; i < output.size(); ++i) {
      output[i] += p[j] * expanded.values[static_cast<std::size_t>(keys[j])][i];
    }
  }
  return testing::Rounded(batch.type, output);
}

}  // namespace

TEST_CASE("MaskedAttention of wide heads matches its equation row by row",
          "[kernels][masked_attention]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16);
  constexpr double kRowBound = 0x1p-7;  // a row has too few values for its roundings to even out
  const AttentionBatch dense = MakeWideBatch(format, Pattern::kNone, 2);
  std::vector<Expanded> expanded;  // [sequence * heads + head]
  for (std::int32_t sequence = 0; sequence < 3; ++sequence) {
    for (std::int64_t head = 0; head < dense.heads; ++head) {
      expanded.push_back(Expand(dense, sequence, head));
    }
  }
  for (const Pattern pattern : {Pattern::kNone, Pattern::kAll, Pattern::kHalf, Pattern::kOwn,
                                Pattern::kHoles, Pattern::kRuns}) {
    CAPTURE(testing::Name(format), static_cast<int>(pattern));
    const AttentionBatch batch = MakeWideBatch(format, pattern, 2);
    const std::vector<float> actual = Run(testing::TestBackend(), batch);
    std::vector<double> expected;
    for (std::int64_t row = 0; row < batch.rows.size(); ++row) {
      const std::int32_t sequence = batch.rows.sequences[static_cast<std::size_t>(row)];
      for (std::int64_t head = 0; head < batch.heads; ++head) {
        CAPTURE(row, head);
        const auto first = expected.size();
        const std::vector<double> values = ExpectedRow(
            batch, expanded[static_cast<std::size_t>(sequence * batch.heads + head)], row, head);
        expected.insert(expected.end(), values.begin(), values.end());
        CHECK(testing::RelativeError(std::span(actual).subspan(first, values.size()), values) <
              kRowBound);
      }
    }
    CHECK(testing::RelativeError(actual, expected) < testing::AttentionTolerance(batch.type));
  }
}

TEST_CASE("MaskedAttention of wide heads gives a row the same bits in any batch",
          "[kernels][masked_attention]") {
  const AttentionBatch dense = MakeWideBatch(KvFormat::kFp8, Pattern::kNone, 2);
  CHECK(Run(testing::TestBackend(), MakeWideBatch(KvFormat::kFp8, Pattern::kAll, 2)) ==
        Run(testing::TestBackend(), dense));
  for (const Pattern pattern : {Pattern::kNone, Pattern::kHalf, Pattern::kHoles}) {
    const AttentionBatch batch = MakeWideBatch(KvFormat::kFp8, pattern, 2);
    const std::vector<float> together = Run(testing::TestBackend(), batch);
    for (const std::int64_t row : {0, 1, 6, 64, 65, 128, 132, 133, 137, 141}) {
      CAPTURE(static_cast<int>(pattern), row);
      const auto begin = together.begin() + row * batch.heads * batch.value;
      CHECK(Run(testing::TestBackend(), batch.Only(row)) ==
            std::vector<float>(begin, begin + batch.heads * batch.value));
    }
  }
}

TEST_CASE("MaskedAttention matches its equation", "[kernels][masked_attention]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto selection = GENERATE(Selection::kNone, Selection::kSome);
  CAPTURE(testing::Name(type), testing::Name(format), static_cast<int>(selection));
  const AttentionBatch batch = testing::MakeAttentionBatch(
      {.type = type, .format = format, .selection = selection, .heads = 2});

  const std::vector<float> actual = Run(testing::TestBackend(), batch);

  std::vector<double> expected;
  for (std::int64_t row = 0; row < batch.rows.size(); ++row) {
    for (std::int64_t head = 0; head < batch.heads; ++head) {
      const auto values = ExpectedHead(batch, row, head);
      expected.insert(expected.end(), values.begin(), values.end());
    }
  }
  CHECK(testing::RelativeError(actual, expected) < testing::AttentionTolerance(type));
}

TEST_CASE("MaskedAttention agrees with the absorbed form row by row",
          "[kernels][masked_attention]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto selection = GENERATE(Selection::kNone, Selection::kSome);
  CAPTURE(testing::Name(type), testing::Name(format), static_cast<int>(selection));
  const AttentionBatch batch = testing::MakeAttentionBatch(
      {.type = type, .format = format, .selection = selection, .heads = 8});
  const double bound = type == DataType::kF32 ? 2 * testing::Tolerance(type) : 1.5e-2;
  const std::vector<float> masked = Run(testing::TestBackend(), batch);
  const std::vector<float> absorbed = RunAbsorbed(testing::TestBackend(), batch);
  for (std::int64_t row = 0; row < batch.rows.size(); ++row) {
    CAPTURE(row);
    const auto first = row * batch.heads * batch.value;
    const auto cols = static_cast<std::size_t>(batch.heads * batch.value);
    const std::vector<double> expected(
        absorbed.begin() + first, absorbed.begin() + first + static_cast<std::ptrdiff_t>(cols));
    CHECK(testing::RelativeError(std::span(masked).subspan(static_cast<std::size_t>(first), cols),
                                 expected) < bound);
  }
}

TEST_CASE("MaskedAttention gives the bits of no selection where all keys are selected",
          "[kernels][masked_attention]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  testing::AttentionCase attention_case = {
      .type = type, .format = KvFormat::kFp8, .selection = Selection::kNone, .heads = 3};
  const std::vector<float> dense =
      Run(testing::TestBackend(), testing::MakeAttentionBatch(attention_case));
  attention_case.selection = Selection::kAll;
  CHECK(Run(testing::TestBackend(), testing::MakeAttentionBatch(attention_case)) == dense);
}

TEST_CASE("MaskedAttention of a row depends on that row alone", "[kernels][masked_attention]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto selection = GENERATE(Selection::kNone, Selection::kSome);
  CAPTURE(testing::Name(format), static_cast<int>(selection));
  const AttentionBatch batch = testing::MakeAttentionBatch(
      {.type = DataType::kF32, .format = format, .selection = selection, .heads = 2});
  const std::vector<float> together = Run(testing::TestBackend(), batch);
  for (Backend* backend : testing::BackendVariants()) {
    CHECK(Run(*backend, batch) == together);
  }
  CHECK(Run(testing::TestBackend(), testing::Moved(batch, 77)) == together);
  for (std::int64_t row = 0; row < batch.rows.size(); ++row) {
    const auto begin = together.begin() + row * batch.heads * batch.value;
    CHECK(Run(testing::TestBackend(), batch.Only(row)) ==
          std::vector<float>(begin, begin + batch.heads * batch.value));
  }
}

TEST_CASE("MaskedAttention of a row without keys is zero", "[kernels][masked_attention]") {
  testing::CheckRowWithoutKeysIsZero(
      testing::MakeAttentionBatch({.type = DataType::kBf16,
                                   .format = KvFormat::kFp8,
                                   .selection = Selection::kSome,
                                   .heads = 2}),
      [](const AttentionBatch& batch) { return Run(testing::TestBackend(), batch); });
}

TEST_CASE("MaskedAttention takes no rows", "[kernels][masked_attention]") {
  AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kBf16,
                                                      .format = KvFormat::kFp8,
                                                      .selection = Selection::kNone,
                                                      .heads = 2});
  batch.rows = {};
  batch.q.clear();
  batch.selected.clear();
  batch.counts.clear();
  CHECK(Run(testing::TestBackend(), batch).empty());
}

}  // namespace dsa::masked_attention_test
