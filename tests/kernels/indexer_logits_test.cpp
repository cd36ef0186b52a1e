// IndexerLogits against a double-precision restatement over keys scattered in the cache.  What no
// row sees is NaN, so a read beyond a row's position shows.
#include "kernels/ops/indexer_logits.h"

#include "tests/kernels/paged_cache.h"

#include <array>
#include <cmath>

namespace dsa::indexer_logits_test {
namespace {

struct Input {
  DataType type;  // of the queries
  KvFormat format;
  std::int64_t heads;
  std::int64_t context;  // columns of scores
  testing::RowList rows;
  testing::PagedLayout layout;
  std::vector<float> queries;  // [T * H * 128]
  std::vector<float> weights;  // [T * H]
  std::vector<std::uint8_t> cache;
};

// Rows of three sequences, at both sides of block borders; runs longer than any tile of rows.
testing::RowList MakeRows() {
  testing::RowList rows;
  for (const std::int32_t position : {0, 1, 62, 63, 64, 65, 127, 128, 200}) {
    rows.positions.push_back(position);
    rows.sequences.push_back(2);
  }
  for (std::int32_t position = 180; position < 240; ++position) {
    rows.positions.push_back(position);
    rows.sequences.push_back(0);
  }
  for (const std::int32_t sequence : {1, 2, 1, 0}) {
    rows.positions.push_back(100 + sequence);
    rows.sequences.push_back(sequence);
  }
  return rows;
}

// The same keys whatever the layout.
void FillCache(Input& input) {
  input.cache = testing::EmptyIndexerKeys(input.format, input.layout.blocks);
  for (std::int64_t sequence = 0; sequence < 3; ++sequence) {
    for (std::int64_t position = 0; position < 240; ++position) {
      const auto seed = static_cast<std::uint32_t>(sequence * 1000 + position);
      testing::EncodeIndexerKey(input.format, input.cache, input.layout.Slot(sequence, position),
                                testing::RandomFloat(128, 1.0F, seed));
    }
  }
}

Input MakeInput(DataType type, KvFormat format, std::int64_t heads) {
  Input input = {.type = format == KvFormat::kFp8 ? DataType::kFp8E4m3 : type,
                 .format = format,
                 .heads = heads,
                 .context = 250,
                 .rows = MakeRows(),
                 .layout = testing::ShuffledBlocks(3, 4, 51),
                 .queries = {},
                 .weights = {},
                 .cache = {}};
  const std::int64_t count = input.rows.size() * heads;
  input.queries = testing::RoundedTo(input.type, testing::RandomFloat(count * 128, 4.0F, 52));
  input.weights = testing::RandomFloat(count, 1.0F, 53);
  FillCache(input);
  return input;
}

std::vector<float> Run(Backend& backend, const Input& input) {
  const std::int64_t tokens = input.rows.size();
  const testing::DeviceTensor queries(backend, input.type,
                                      testing::Dense(tokens, input.heads * 128), input.queries);
  const testing::DeviceArray<float> weights(backend, input.weights);
  const testing::DeviceRows rows(backend, input.rows, input.layout);
  const testing::DeviceArray<std::uint8_t> cache(backend, input.cache);
  const auto scores = testing::DeviceArray<float>::Poisoned(backend, tokens * input.context);
  backend.IndexerLogits(
      {.queries = queries.Heads(input.heads),
       .weights = weights.AsConstMatrix(tokens, input.heads),
       .cache = {.data = cache.data(), .blocks = input.layout.blocks, .format = input.format},
       .rows = rows.View(),
       .scores = scores.AsMatrix(tokens, input.context)});
  return scores.Download();
}

double ExpectedScore(const Input& input, std::size_t row, const std::vector<double>& key) {
  const auto heads = static_cast<std::size_t>(input.heads);
  double score = 0.0;
  for (std::size_t head = row * heads; head < (row + 1) * heads; ++head) {
    double dot = 0.0;
    for (std::size_t d = 0; d < 128; ++d) {
      dot += static_cast<double>(input.queries[head * 128 + d]) * key[d];
    }
    score += input.weights[head] * std::max(dot, 0.0);
  }
  return score;
}

// A row of a sequence at a position, alone.
Input Single(const Input& input, std::int64_t row) {
  Input single = input;
  const auto q = input.queries.begin() + row * input.heads * 128;
  const auto w = input.weights.begin() + row * input.heads;
  single.rows = input.rows.Only(row);
  single.queries.assign(q, q + input.heads * 128);
  single.weights.assign(w, w + input.heads);
  return single;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("IndexerLogits matches its equation", "[kernels][indexer_logits]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto heads = GENERATE(as<std::int64_t>(), 1, 6, 16, 64);
  CAPTURE(testing::Name(type), testing::Name(format), heads);
  const Input input = MakeInput(type, format, heads);

  const std::vector<float> scores = Run(testing::TestBackend(), input);

  std::vector<float> actual;
  std::vector<double> expected;
  std::size_t beyond_unwritten = 0;
  for (std::size_t row = 0; row < input.rows.positions.size(); ++row) {
    const float* const row_scores = scores.data() + row * static_cast<std::size_t>(input.context);
    const std::int32_t position = input.rows.positions[row];
    for (std::int32_t s = 0; s <= position; ++s) {
      const std::int64_t slot = input.layout.Slot(input.rows.sequences[row], s);
      actual.push_back(row_scores[s]);
      expected.push_back(
          ExpectedScore(input, row, testing::DecodeIndexerKey(input.format, input.cache, slot)));
    }
    for (std::int64_t s = position + 1; s < input.context; ++s) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, row_scores + s, sizeof(bits));
      beyond_unwritten += bits == 0xFFFFFFFFU ? 0 : 1;
    }
  }
  // Products of the fp8 format may be those of fp8 tensor cores, float32 sums are not.
  const double tolerance =
      format == KvFormat::kFp8 ? testing::Fp8ProductTolerance(DataType::kF32) : 5e-7;
  CHECK(testing::RelativeError(actual, expected) < tolerance);
  CHECK(beyond_unwritten == 0);
}

// What a block's scale makes of its scores must not be lost beside another block's.
TEST_CASE("IndexerLogits of keys of every magnitude", "[kernels][indexer_logits]") {
  static constexpr std::array kMagnitudes = {1e4F, 1e-6F, 1.0F};
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto heads = GENERATE(as<std::int64_t>(), 6, 64);
  CAPTURE(testing::Name(format), heads);
  Input input = MakeInput(DataType::kBf16, format, heads);
  const auto group_of = [](std::int64_t position) {
    return static_cast<std::size_t>(position / kTokensPerBlock) % kMagnitudes.size();
  };
  for (std::int64_t sequence = 0; sequence < 3; ++sequence) {
    for (std::int64_t position = 0; position < 240; ++position) {
      const auto seed = static_cast<std::uint32_t>(sequence * 1000 + position);
      testing::EncodeIndexerKey(
          input.format, input.cache, input.layout.Slot(sequence, position),
          testing::RandomFloat(128, kMagnitudes.at(group_of(position)), seed));
    }
  }

  const std::vector<float> scores = Run(testing::TestBackend(), input);

  std::array<std::vector<float>, kMagnitudes.size()> actual;
  std::array<std::vector<double>, kMagnitudes.size()> expected;
  for (std::size_t row = 0; row < input.rows.positions.size(); ++row) {
    for (std::int32_t s = 0; s <= input.rows.positions[row]; ++s) {
      const std::int64_t slot = input.layout.Slot(input.rows.sequences[row], s);
      actual.at(group_of(s))
          .push_back(
              scores[row * static_cast<std::size_t>(input.context) + static_cast<std::size_t>(s)]);
      expected.at(group_of(s))
          .push_back(ExpectedScore(input, row,
                                   testing::DecodeIndexerKey(input.format, input.cache, slot)));
    }
  }
  const double tolerance =
      format == KvFormat::kFp8 ? testing::Fp8ProductTolerance(DataType::kF32) : 5e-7;
  for (std::size_t group = 0; group < kMagnitudes.size(); ++group) {
    CAPTURE(kMagnitudes.at(group));
    REQUIRE(actual.at(group).size() > 100);
    CHECK(testing::RelativeError(actual.at(group), expected.at(group)) < tolerance);
  }
}

TEST_CASE("IndexerLogits of a row depends on that row alone", "[kernels][indexer_logits]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const Input input = MakeInput(DataType::kBf16, format, 16);
  const std::vector<float> together = Run(testing::TestBackend(), input);
  for (Backend* backend : testing::BackendVariants()) {
    CHECK(SameBits(Run(*backend, input), together));
  }
  Input moved = input;  // the same keys in other blocks
  moved.layout = testing::ShuffledBlocks(3, 4, 54);
  FillCache(moved);
  CHECK(SameBits(Run(testing::TestBackend(), moved), together));
  for (std::int64_t row = 0; row < input.rows.size(); ++row) {
    const auto begin = together.begin() + row * input.context;
    CHECK(SameBits(Run(testing::TestBackend(), Single(input, row)),
                   std::vector<float>(begin, begin + input.context)));
  }
}

TEST_CASE("IndexerLogits gives the same bits with room for more scores",
          "[kernels][indexer_logits]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  CAPTURE(testing::Name(format));
  Input input = MakeInput(DataType::kBf16, format, 6);
  const std::int64_t context = input.context;
  const std::vector<float> expected = Run(testing::TestBackend(), input);
  input.context = 20000;  // a GPU divides the keys of a row otherwise
  const std::vector<float> scores = Run(testing::TestBackend(), input);
  for (std::int64_t row = 0; row < input.rows.size(); ++row) {
    const auto narrow = expected.begin() + row * context;
    const auto wide = scores.begin() + row * input.context;
    CHECK(SameBits(std::vector<float>(wide, wide + context),
                   std::vector<float>(narrow, narrow + context)));
  }
}

TEST_CASE("IndexerLogits carries a NaN key to its own score", "[kernels][indexer_logits]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  CAPTURE(testing::Name(format));
  Input input = MakeInput(DataType::kF32, format, 16);
  const std::size_t byte = testing::IndexerBytesOf(format, input.layout.Slot(2, 5))[0];
  for (std::size_t i = 0; i < 4; ++i) {
    input.cache[byte + i] = 0xFF;
  }
  const std::vector<float> scores = Run(testing::TestBackend(), Single(input, 5));
  for (std::size_t s = 0; s <= 65; ++s) {
    REQUIRE(std::isnan(scores[s]) == (s == 5));
  }
}

TEST_CASE("IndexerLogits takes no rows", "[kernels][indexer_logits]") {
  Input input = MakeInput(DataType::kF32, KvFormat::kFp8, 4);
  input.rows = {};
  input.queries.clear();
  input.weights.clear();
  CHECK(Run(testing::TestBackend(), input).empty());
}

}  // namespace dsa::indexer_logits_test
