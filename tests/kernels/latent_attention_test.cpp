// LatentAttention against a double-precision restatement over latents scattered in the cache.
#include "kernels/ops/latent_attention.h"

#include "common/view_parts.h"
#include "tests/kernels/attention_testing.h"

#include <cmath>
#include <cstring>

namespace dsa::latent_attention_test {
namespace {

using testing::AttentionBatch;
using testing::Selection;

// Queries of latent width come from a generator of their own: scores differ by a few units, so that
// some keys dominate and none decides alone.
std::vector<float> LatentQueries(const AttentionBatch& batch) {
  std::vector<float> queries;
  for (std::size_t row = 0; row < batch.rows.positions.size(); ++row) {
    const auto seed = static_cast<std::uint32_t>(batch.rows.positions[row] * 10 + 3);
    const auto values = testing::RandomFloat(batch.heads * 512, 0.5F, seed);
    queries.insert(queries.end(), values.begin(), values.end());
  }
  return testing::RoundedTo(batch.type, queries);
}

struct Operands {
  Backend& backend;
  const AttentionBatch& batch;
  testing::DeviceTensor latent, q;
  testing::DeviceRows rows;
  testing::DeviceSelection selection;
  testing::DeviceArray<std::uint8_t> cache;
  testing::DeviceTensor output;

  // Rows of the output lie `padding` values apart.
  Operands(Backend& backend_used, const AttentionBatch& values, std::int64_t padding = 8)
      : backend(backend_used),
        batch(values),
        latent(backend, batch.type, testing::Dense(batch.rows.size(), batch.heads * 512),
               LatentQueries(batch)),
        q(backend, batch.type, testing::Dense(batch.rows.size(), batch.heads * (batch.nope + 64)),
          batch.q),
        rows(backend, batch.rows, batch.layout),
        selection(backend, batch),
        cache(backend, batch.cache),
        output(testing::DeviceTensor::Poisoned(backend, batch.type,
                                               {.rows = batch.rows.size(),
                                                .cols = batch.heads * 512,
                                                .row_stride = batch.heads * 512 + padding})) {}

  void Attend() const {
    backend.LatentAttention(
        {.q_latent = latent.Heads(batch.heads),
         .q_rope = ColumnsOf(q.Heads(batch.heads), batch.nope, 64),
         .cache = {.data = cache.data(), .blocks = batch.layout.blocks, .format = batch.format},
         .rows = rows.View(),
         .selection = selection.View(),
         .softmax_scale = batch.softmax_scale,
         .o_latent = output.Heads(batch.heads)});
  }
};

std::vector<float> Run(Backend& backend, const AttentionBatch& batch) {
  const Operands operands(backend, batch);
  operands.Attend();
  return operands.output.Download();
}

// The records that a row attends to.
std::vector<std::vector<double>> AttendedRecords(const AttentionBatch& batch, std::int64_t row) {
  const std::int32_t sequence = batch.rows.sequences[static_cast<std::size_t>(row)];
  std::vector<std::vector<double>> records;
  for (const std::int32_t position : batch.Keys(row)) {
    records.push_back(
        testing::DecodeLatent(batch.format, batch.cache, batch.layout.Slot(sequence, position)));
  }
  return records;
}

// One head, of a query of latent width and one of 64 values.
std::vector<double> ExpectedHead(const AttentionBatch& batch, const float* latent,
                                 const float* rope,
                                 const std::vector<std::vector<double>>& records) {
  std::vector<double> scores;
  for (const std::vector<double>& record : records) {
    double score = 0.0;
    for (std::size_t i = 0; i < 512; ++i) {
      score += static_cast<double>(latent[i]) * record[i];
    }
    for (std::size_t i = 0; i < 64; ++i) {
      score += static_cast<double>(rope[i]) * record[512 + i];
    }
    scores.push_back(score * static_cast<double>(batch.softmax_scale));
  }
  const std::vector<double> p = testing::SoftmaxExpected(batch.type, scores);
  std::vector<double> output(512, 0.0);
  for (std::size_t j = 0; j < p.size(); ++j) {
    for (std::size_t i = 0; i < 512; ++i) {
      output[i] += p[j] * records[j][i];
    }
  }
  return testing::Rounded(batch.type, output);
}

std::vector<double> Expected(const AttentionBatch& batch) {
  const std::vector<float> queries = LatentQueries(batch);
  std::vector<double> expected;
  for (std::int64_t row = 0; row < batch.rows.size(); ++row) {
    const auto records = AttendedRecords(batch, row);
    for (std::int64_t head = row * batch.heads; head < (row + 1) * batch.heads; ++head) {
      const auto values =
          ExpectedHead(batch, queries.data() + head * 512,
                       batch.q.data() + head * (batch.nope + 64) + batch.nope, records);
      expected.insert(expected.end(), values.begin(), values.end());
    }
  }
  return expected;
}

// Rows [first, first + count) in one call, each against its equation, of which `expected` has all.
// The equation rounds the probabilities, of which one may decide a row, and it and the op their
// outputs: 2^-9 each.
void CheckRows(const AttentionBatch& batch, const std::vector<double>& expected, std::int64_t first,
               std::int64_t count) {
  const std::vector<float> actual = Run(testing::TestBackend(), batch.Rows(first, count));
  const std::int64_t cols = batch.heads * 512;
  for (std::int64_t row = 0; row < count; ++row) {
    const auto part = [cols](const auto& values, std::int64_t at) {
      return std::vector(values.begin() + at * cols, values.begin() + (at + 1) * cols);
    };
    CAPTURE(first, count, row, batch.rows.positions[static_cast<std::size_t>(first + row)]);
    CHECK(testing::RelativeError(part(actual, row), part(expected, first + row)) < 3 * 0x1p-9);
  }
}

}  // namespace

TEST_CASE("LatentAttention matches its equation", "[kernels][latent_attention]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto selection = GENERATE(Selection::kNone, Selection::kSome);
  const auto heads = GENERATE(as<std::int64_t>(), 1, 19, 37);
  if (heads == 37 && (type == DataType::kF32 || format == KvFormat::kF32)) {
    return;  // many heads differ from few in the products of bf16 alone
  }
  CAPTURE(testing::Name(type), testing::Name(format), static_cast<int>(selection), heads);
  const AttentionBatch batch = testing::MakeAttentionBatch(
      {.type = type, .format = format, .selection = selection, .heads = heads});

  CHECK(testing::RelativeError(Run(testing::TestBackend(), batch), Expected(batch)) <
        testing::AttentionTolerance(type));
}

// One row a launch is cut into the most ranges, all rows into fewer; ranges end within a turn of
// keys, at its end, and before their first key.
TEST_CASE("LatentAttention of every count around the borders of its turns",
          "[kernels][latent_attention]") {
  const auto selection = GENERATE(Selection::kNone, Selection::kSome);
  const AttentionBatch batch = testing::MakeAttentionBatch(
      {.type = DataType::kBf16,
       .format = KvFormat::kFp8,
       .selection = selection,
       .heads = 7,
       .visible = {2600, 1, 31, 32, 33, 63, 64, 65, 129, 700, 1999, 2047, 2048, 2049},
       .selected = 2048});
  const std::vector<double> expected = Expected(batch);
  CheckRows(batch, expected, 0, batch.rows.size());
  for (std::int64_t row = 0; row < batch.rows.size(); ++row) {
    CheckRows(batch, expected, row, 1);
  }
}

TEST_CASE("LatentAttention of every number of ranges", "[kernels][latent_attention]") {
  std::vector<std::int32_t> visible;
  for (std::int32_t row = 0; row < 140; ++row) {
    visible.push_back(1 + row * 37 % 300);
  }
  const AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kBf16,
                                                            .format = KvFormat::kFp8,
                                                            .selection = Selection::kSome,
                                                            .heads = 3,
                                                            .visible = visible,
                                                            .selected = 200});
  const std::vector<double> expected = Expected(batch);
  for (const std::int64_t count : {2, 3, 5, 8, 9, 17, 33, 66, 67, 140}) {
    CheckRows(batch, expected, 140 - count, count);
  }
}

// Two groups of heads with the same keys, whose blocks may share them, in 1, 2, 4 and 8 ranges.
TEST_CASE("LatentAttention of two groups of heads", "[kernels][latent_attention]") {
  std::vector<std::int32_t> visible;
  for (std::int32_t row = 0; row < 68; ++row) {
    visible.push_back(1 + row * 37 % 200);
  }
  const AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kBf16,
                                                            .format = KvFormat::kFp8,
                                                            .selection = Selection::kSome,
                                                            .heads = 66,
                                                            .visible = visible,
                                                            .selected = 150});
  const std::vector<double> expected = Expected(batch);
  for (const std::int64_t count : {6, 12, 16, 24, 32, 68}) {
    CheckRows(batch, expected, 68 - count, count);
  }
}

TEST_CASE("LatentAttention of rows that are not aligned", "[kernels][latent_attention]") {
  const auto heads = GENERATE(as<std::int64_t>(), 3, 20, 65);
  const AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kBf16,
                                                            .format = KvFormat::kFp8,
                                                            .selection = Selection::kSome,
                                                            .heads = heads,
                                                            .visible = {1, 97, 200},
                                                            .selected = 150});
  const Operands operands(testing::TestBackend(), batch, 3);
  operands.Attend();
  CHECK(testing::RelativeError(operands.output.Download(), Expected(batch)) <
        testing::AttentionTolerance(batch.type));
}

TEST_CASE("LatentAttention of 16, 17, 65 and 128 heads", "[kernels][latent_attention]") {
  const auto heads = GENERATE(as<std::int64_t>(), 16, 17, 65, 128);
  const AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kBf16,
                                                            .format = KvFormat::kFp8,
                                                            .selection = Selection::kSome,
                                                            .heads = heads,
                                                            .visible = {1, 32, 33, 64, 97, 300},
                                                            .selected = 150});
  const std::vector<double> expected = Expected(batch);
  CheckRows(batch, expected, 0, 6);
  CheckRows(batch, expected, 2, 1);
  CheckRows(batch, expected, 5, 1);
}

TEST_CASE("LatentAttention that is batch-invariant gives a row its bits in any batch",
          "[kernels][latent_attention]") {
  const auto [type, format, heads] =
      GENERATE(table<DataType, KvFormat, std::int64_t>({{DataType::kBf16, KvFormat::kFp8, 3},
                                                        {DataType::kBf16, KvFormat::kFp8, 70},
                                                        {DataType::kBf16, KvFormat::kBf16, 3},
                                                        {DataType::kF32, KvFormat::kFp8, 3}}));
  CAPTURE(testing::Name(type), testing::Name(format), heads);
  std::vector<std::int32_t> visible;
  for (std::int32_t row = 0; row < 40; ++row) {
    visible.push_back(1 + row * 37 % 300);
  }
  const AttentionBatch batch = testing::MakeAttentionBatch({.type = type,
                                                            .format = format,
                                                            .selection = Selection::kSome,
                                                            .heads = heads,
                                                            .visible = visible,
                                                            .selected = 200});
  Backend& backend = testing::TestBackend();
  const testing::DeviceRows rows(backend, batch.rows, batch.layout);
  backend.PlanAttention(rows.View(), heads, true);
  const std::vector<float> together = Run(backend, batch);
  for (const std::int64_t row : {0, 7, 22, 39}) {
    const auto begin = together.begin() + row * heads * 512;
    CHECK(Run(backend, batch.Only(row)) == std::vector<float>(begin, begin + heads * 512));
  }
  backend.PlanAttention(rows.View(), heads, false);
}

// Whatever a launch counts in device memory is as it was before, so that the next one is right.
TEST_CASE("LatentAttention in a graph gives the same bits again and again",
          "[kernels][latent_attention]") {
  const auto heads = GENERATE(as<std::int64_t>(), 3, 70);
  const AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kBf16,
                                                            .format = KvFormat::kFp8,
                                                            .selection = Selection::kSome,
                                                            .heads = heads,
                                                            .visible = {300, 64, 299},
                                                            .selected = 200});
  Backend& backend = testing::TestBackend();
  const Operands operands(backend, batch);
  operands.Attend();
  const std::vector<float> eager = operands.output.Download();
  constexpr GraphId kGraph{5};
  backend.Record(kGraph, [&] {
    backend.Zero(operands.output.View().data, 16);
    operands.Attend();
  });
  for (int run = 0; run < 3; ++run) {
    backend.Replay(kGraph);
    backend.Replay(kGraph);
    CHECK(operands.output.Download() == eager);
  }
}

// Also where parts wait for each other: none may be taken for one that was not written yet.
TEST_CASE("LatentAttention gives NaN to a head whose query holds one, and to no other",
          "[kernels][latent_attention]") {
  const auto heads = GENERATE(as<std::int64_t>(), 3, 70);
  const auto bits = GENERATE(as<std::uint32_t>(), 0x7FC00000U, 0xFFFFFFFFU);
  AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kBf16,
                                                      .format = KvFormat::kFp8,
                                                      .selection = Selection::kSome,
                                                      .heads = heads,
                                                      .visible = {2100},
                                                      .selected = 2048});
  const std::vector<float> clean = Run(testing::TestBackend(), batch);
  float& value = batch.q[static_cast<std::size_t>(batch.nope + 64 + batch.nope)];  // of head 1
  const float before = value;
  std::memcpy(&value, &bits, sizeof(value));
  const std::vector<float> actual = Run(testing::TestBackend(), batch);
  for (std::size_t i = 0; i < clean.size(); ++i) {
    if (i / 512 == 1) {
      CHECK(std::isnan(actual[i]));
    } else {
      CHECK(actual[i] == clean[i]);
    }
  }
  value = before;
  CHECK(Run(testing::TestBackend(), batch) == clean);
}

TEST_CASE("LatentAttention gives the bits of the dense path where all keys are selected",
          "[kernels][latent_attention]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  CAPTURE(testing::Name(type), testing::Name(format));
  testing::AttentionCase attention_case = {
      .type = type, .format = format, .selection = Selection::kNone, .heads = 5};
  const std::vector<float> dense =
      Run(testing::TestBackend(), testing::MakeAttentionBatch(attention_case));
  attention_case.selection = Selection::kAll;
  CHECK(Run(testing::TestBackend(), testing::MakeAttentionBatch(attention_case)) == dense);
}

TEST_CASE("LatentAttention of a row depends on that row alone", "[kernels][latent_attention]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto selection = GENERATE(Selection::kNone, Selection::kSome);
  // Shares of up to 16 heads; fewer where one row meets several threads.
  const auto heads = GENERATE(as<std::int64_t>(), 1, 18);
  CAPTURE(testing::Name(format), static_cast<int>(selection), heads);
  const AttentionBatch batch = testing::MakeAttentionBatch(
      {.type = DataType::kF32, .format = format, .selection = selection, .heads = heads});
  const std::vector<float> together = Run(testing::TestBackend(), batch);
  for (Backend* backend : testing::BackendVariants()) {
    CHECK(Run(*backend, batch) == together);
  }
  CHECK(Run(testing::TestBackend(), testing::Moved(batch, 76)) == together);
  for (std::int64_t row = 0; row < batch.rows.size(); ++row) {
    const auto begin = together.begin() + row * heads * 512;
    const std::vector<float> wanted(begin, begin + heads * 512);
    const std::vector<float> alone = Run(testing::TestBackend(), batch.Only(row));
    if (testing::AttentionRowsAreIndependent()) {
      CHECK(alone == wanted);
    } else {
      CHECK(testing::RelativeError(alone, std::vector<double>(wanted.begin(), wanted.end())) <
            testing::AttentionTolerance(batch.type));
    }
    if (row == 12) {  // 600 keys
      for (Backend* backend : testing::BackendVariants()) {
        CHECK(Run(*backend, batch.Only(row)) == wanted);
      }
    }
  }
}

TEST_CASE("LatentAttention of a row without keys is zero", "[kernels][latent_attention]") {
  testing::CheckRowWithoutKeysIsZero(
      testing::MakeAttentionBatch({.type = DataType::kBf16,
                                   .format = KvFormat::kFp8,
                                   .selection = Selection::kSome,
                                   .heads = 2}),
      [](const AttentionBatch& batch) { return Run(testing::TestBackend(), batch); });
}

// Rows 40, 41 and 42 keys long are the last three of the batch.
TEST_CASE("LatentAttention gives a group of rows the bits of single rows",
          "[kernels][latent_attention]") {
  const auto selection = GENERATE(Selection::kNone, Selection::kSome);
  AttentionBatch batch = testing::MakeAttentionBatch(
      {.type = DataType::kBf16, .format = KvFormat::kFp8, .selection = selection, .heads = 3});
  const auto rows = static_cast<std::ptrdiff_t>(batch.rows.positions.size());
  const auto keep_last = [rows](auto& values) {
    values.erase(values.begin(),
                 values.end() - static_cast<std::ptrdiff_t>(values.size()) / rows * 3);
  };
  keep_last(batch.q);
  keep_last(batch.selected);
  keep_last(batch.counts);
  keep_last(batch.rows.sequences);
  keep_last(batch.rows.positions);
  const std::vector<float> single = Run(testing::TestBackend(), batch);
  batch.rows.group = 3;
  CHECK(Run(testing::TestBackend(), batch) == single);
}

// A kernel that multiplies in half gives no wrong values beyond its range: what is not finite fails
// its request.
TEST_CASE("LatentAttention is right or not finite where latents are too large for half",
          "[kernels][latent_attention]") {
  const auto [factor, fits] = GENERATE(table<float, bool>({{0x1p13F, true}, {0x1p20F, false}}));
  CAPTURE(factor);
  AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kBf16,
                                                      .format = KvFormat::kFp8,
                                                      .selection = Selection::kNone,
                                                      .heads = 3,
                                                      .visible = {70, 1, 40}});
  for (const std::int64_t position : {5, 38}) {
    const std::size_t record =
        testing::LatentBytesOf(batch.format, batch.layout.Slot(1, position))[0];
    for (std::size_t scale = record + 512; scale < record + 528; scale += 4) {
      float value = 0.0F;
      std::memcpy(&value, batch.cache.data() + scale, 4);
      value *= factor;
      std::memcpy(batch.cache.data() + scale, &value, 4);
    }
  }
  const std::vector<float> actual = Run(testing::TestBackend(), batch);
  const std::vector<double> expected = Expected(batch);
  for (std::ptrdiff_t head = 0; head < 3 * batch.heads; ++head) {
    std::vector<float> values(actual.begin() + head * 512, actual.begin() + (head + 1) * 512);
    const std::vector<double> wanted(expected.begin() + head * 512,
                                     expected.begin() + (head + 1) * 512);
    for (std::size_t i = 0; i < values.size() && !fits; ++i) {
      values[i] = std::isfinite(values[i]) ? values[i] : static_cast<float>(wanted[i]);
    }
    CAPTURE(head);
    CHECK(testing::RelativeError(values, wanted) < 3 * 0x1p-9);
  }
}

TEST_CASE("LatentAttention takes no rows", "[kernels][latent_attention]") {
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

TEST_CASE("LatentAttention passes NaN on", "[kernels][latent_attention]") {
  AttentionBatch batch = testing::MakeAttentionBatch({.type = DataType::kF32,
                                                      .format = KvFormat::kF32,
                                                      .selection = Selection::kNone,
                                                      .heads = 2});
  const std::size_t byte = testing::LatentBytesOf(batch.format, batch.layout.Slot(1, 0))[0];
  std::fill_n(batch.cache.begin() + static_cast<std::ptrdiff_t>(byte), 4, std::uint8_t{0xFF});
  const std::vector<float> output = Run(testing::TestBackend(), batch.Only(3));
  CHECK(std::all_of(output.begin(), output.end(), [](float value) { return std::isnan(value); }));
}

}  // namespace dsa::latent_attention_test
