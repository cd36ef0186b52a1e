// PrepareIndexerQuery against a double-precision restatement of its steps.
#include "kernels/ops/prepare_indexer_query.h"

#include "tests/kernels/paged_cache.h"

#include <cmath>

namespace dsa::prepare_indexer_query_test {
namespace {

struct Input {
  DataType type;
  KvFormat format;
  RopeLayout layout;
  std::int64_t heads;
  std::vector<std::int32_t> positions;
  std::vector<float> q;             // [T * H * 128]
  std::vector<float> head_weights;  // [T * H]
};

struct Output {
  std::vector<float> queries;  // as stored, without their scale
  std::vector<float> weights;
};

Input MakeInput(DataType type, KvFormat format, RopeLayout layout, std::int64_t heads) {
  Input input = {.type = type,
                 .format = format,
                 .layout = layout,
                 .heads = heads,
                 .positions = {0, 1, 163839, 70, 5},
                 .q = {},
                 .head_weights = testing::RandomFloat(5 * heads, 1.0F, 31)};
  std::vector<float> q = testing::RandomFloat(5 * heads * 128, 1.0F, 32);
  for (std::size_t i = 0; i < q.size(); ++i) {
    q[i] *= std::exp2(static_cast<float>(i / 128 % 7));  // heads with different scales
  }
  input.q = testing::RoundedTo(type, q);
  return input;
}

Output Run(Backend& backend, const Input& input) {
  const auto tokens = static_cast<std::int64_t>(input.positions.size());
  const auto shape = testing::Dense(tokens, input.heads * 128);
  const testing::DeviceTensor q(backend, input.type, shape, input.q);
  const testing::DeviceTensor head_weights(backend, DataType::kF32,
                                           testing::Dense(tokens, input.heads), input.head_weights);
  const testing::DeviceArray<std::int32_t> positions(backend, input.positions);
  const testing::RopeTables tables(backend, 32, input.positions);
  const DataType stored = input.format == KvFormat::kFp8 ? DataType::kFp8E4m3 : input.type;
  const auto queries = testing::DeviceTensor::Poisoned(backend, stored, shape);
  const auto weights = testing::DeviceArray<float>::Poisoned(backend, tokens * input.heads);
  backend.PrepareIndexerQuery({.q = q.Heads(input.heads),
                               .positions = positions.AsConstVector(),
                               .table = tables.View(),
                               .layout = input.layout,
                               .format = input.format,
                               .head_weights = head_weights.View(),
                               .queries = queries.Heads(input.heads),
                               .weights = weights.AsMatrix(tokens, input.heads)});
  return {.queries = queries.Download(), .weights = weights.Download()};
}

// Appends the queries and the weight of one head of one row.
void AppendExpected(const Input& input, std::size_t head, std::vector<double>& queries,
                    std::vector<double>& weights) {
  const auto begin = input.q.begin() + static_cast<std::ptrdiff_t>(head * 128);
  std::vector<double> values(begin, begin + 128);
  const std::size_t row = head / static_cast<std::size_t>(input.heads);
  testing::RotateExpected(std::span(values).first(64), input.positions[row], input.layout);
  values = testing::Rounded(input.type, values);
  double scale = 1.0;
  if (input.format == KvFormat::kFp8) {
    values = testing::Rounded(input.type, testing::HadamardExpected(values));
    scale = testing::PowerOfTwoScale(values);
    for (double& value : values) {
      value = testing::DecodeE4m3(testing::EncodeE4m3(value / scale));
    }
  }
  queries.insert(queries.end(), values.begin(), values.end());
  weights.push_back(input.head_weights[head] * scale / std::sqrt(static_cast<double>(input.heads)) /
                    std::sqrt(128.0));
}

}  // namespace

TEST_CASE("PrepareIndexerQuery matches its steps", "[kernels][prepare_indexer_query]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto layout = GENERATE(RopeLayout::kHalfSplit, RopeLayout::kInterleaved);
  const auto heads = GENERATE(as<std::int64_t>(), 1, 16, 64);
  CAPTURE(testing::Name(type), testing::Name(format), static_cast<int>(layout), heads);
  const Input input = MakeInput(type, format, layout, heads);

  const Output output = Run(testing::TestBackend(), input);

  std::vector<double> queries;
  std::vector<double> weights;
  for (std::size_t head = 0; head < input.head_weights.size(); ++head) {
    AppendExpected(input, head, queries, weights);
  }
  if (type == DataType::kF32 && format != KvFormat::kFp8) {
    CHECK(testing::RelativeError(output.queries, queries) < 5e-7);
  } else {
    const std::vector<double> actual(output.queries.begin(), output.queries.end());
    CHECK(testing::EqualShare(actual, queries) > 0.998);  // 640 values and more
  }
  CHECK(testing::RelativeError(output.weights, weights) < 2e-7);
}

TEST_CASE("PrepareIndexerQuery of a row depends on that row alone",
          "[kernels][prepare_indexer_query]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kF32);
  const Input input = MakeInput(type, format, RopeLayout::kHalfSplit, 16);
  const Output together = Run(testing::TestBackend(), input);
  for (Backend* backend : testing::BackendVariants()) {
    const Output other = Run(*backend, input);
    CHECK(other.queries == together.queries);
    CHECK(other.weights == together.weights);
  }
  for (std::size_t row = 0; row < input.positions.size(); ++row) {
    Input single = input;
    const auto q = input.q.begin() + static_cast<std::ptrdiff_t>(row * 16 * 128);
    const auto weights = input.head_weights.begin() + static_cast<std::ptrdiff_t>(row * 16);
    single.positions = {input.positions[row]};
    single.q.assign(q, q + 16 * 128);
    single.head_weights.assign(weights, weights + 16);
    const Output alone = Run(testing::TestBackend(), single);
    CHECK(std::equal(alone.queries.begin(), alone.queries.end(),
                     together.queries.begin() + static_cast<std::ptrdiff_t>(row * 16 * 128)));
    CHECK(std::equal(alone.weights.begin(), alone.weights.end(),
                     together.weights.begin() + static_cast<std::ptrdiff_t>(row * 16)));
  }
}

TEST_CASE("PrepareIndexerQuery takes no rows", "[kernels][prepare_indexer_query]") {
  Input input = MakeInput(DataType::kF32, KvFormat::kFp8, RopeLayout::kHalfSplit, 4);
  input.positions.clear();
  input.q.clear();
  input.head_weights.clear();
  CHECK(Run(testing::TestBackend(), input).queries.empty());
}

}  // namespace dsa::prepare_indexer_query_test
