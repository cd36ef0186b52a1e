// SelectKeys on CUDA against its default body, the scores' bits included.
#include "tests/kernels/select_keys_problem.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace dsa {
namespace {

using testing::select_keys::OneEach;
using testing::select_keys::Output;
using testing::select_keys::PlainBodies;
using testing::select_keys::Problem;

}  // namespace

TEST_CASE("SelectKeys equals its default body, decode", "[kernels][select_keys]") {
  const auto heads = GENERATE(as<std::int64_t>(), 4, 16, 32, 64);
  const auto type = GENERATE(DataType::kBf16, DataType::kF32);
  CAPTURE(heads);
  const std::vector<std::int32_t> lengths = {5000, 1,    12288, 64,   2048, 2049, 65,
                                             63,   8192, 8193,  4097, 6144, 6145};
  Problem({.rows = OneEach(lengths),
           .sequences = 13,
           .context = 12288,
           .heads = heads,
           .k = 2048,
           .score_rows = 13,
           .type = type})
      .Check();
}

TEST_CASE("SelectKeys equals its default body, one long row",
          "[kernels][select_keys][sixteen_blocks]") {
  const auto length = GENERATE(as<std::int32_t>(), 1, 2049, 65537, 131072);
  Problem({.rows = OneEach({length}),
           .sequences = 1,
           .context = 131072,
           .heads = 64,
           .k = 2048,
           .score_rows = 1})
      .Check();
}

TEST_CASE("SelectKeys of rows of a million keys equals its default body",
          "[kernels][select_keys][real_sizes]") {
  constexpr std::int64_t kContext = 1 << 20;
  const auto rows = GENERATE(OneEach({1 << 20}), OneEach({(1 << 20) - 1, 1, 700'001}));
  Problem({.rows = rows,
           .sequences = rows.size(),
           .context = kContext,
           .heads = 64,
           .k = 2048,
           .score_rows = rows.size()})
      .Check();
}

TEST_CASE("SelectKeys equals its default body, groups of rows", "[kernels][select_keys]") {
  const auto group = GENERATE(as<std::int32_t>(), 2, 3, 4);
  CAPTURE(group);
  testing::RowList rows{.positions = {}, .sequences = {}, .group = group};
  for (const std::int32_t first : {0, 61, 62, 700, 2046, 5000, 4030}) {  // some cross a block
    for (std::int32_t i = 0; i < group; ++i) {
      rows.positions.push_back(first + i);
      rows.sequences.push_back(first % 3);
    }
  }
  Problem({.rows = rows,
           .sequences = 3,
           .context = 5120,
           .heads = 64,
           .k = 600,
           .score_rows = 2 * group + 1})
      .Check();
}

TEST_CASE("SelectKeys equals its default body, padding and one tile a row",
          "[kernels][select_keys]") {
  const auto score_rows = GENERATE(as<std::int64_t>(), 1, 2, 6);
  testing::RowList rows = OneEach({3000, 2999, 70});
  for (int i = 0; i < 3; ++i) {  // padding: position 0 of one sequence
    rows.positions.push_back(0);
    rows.sequences.push_back(3);
  }
  Problem({.rows = rows,
           .sequences = 4,
           .context = 3008,
           .heads = 16,
           .k = 64,
           .score_rows = score_rows})
      .Check();
}

TEST_CASE("SelectKeys equals its default body, rows of a prompt", "[kernels][select_keys]") {
  testing::RowList rows;
  rows.has_runs = GENERATE(false, true);
  CAPTURE(rows.has_runs);
  for (std::int32_t row = 0; row < 150; ++row) {
    rows.positions.push_back(row < 77 ? 900 + row : 130 + row);
    rows.sequences.push_back(row < 77 ? 0 : 1);
  }
  Problem({.rows = rows, .sequences = 2, .context = 1024, .heads = 64, .k = 200, .score_rows = 100})
      .Check();
}

// Rows that decode stand before two prompts, of which one has a single row and one begins within
// what would be a unit.
TEST_CASE("SelectKeys equals its default body, rows that decode beside prompts",
          "[kernels][select_keys]") {
  const auto decoding = GENERATE(as<std::int32_t>(), 4, 14, 39);
  CAPTURE(decoding);
  testing::RowList rows;
  rows.has_runs = true;
  for (std::int32_t row = 0; row < decoding; ++row) {
    rows.positions.push_back(row % 7 == 2 ? row : 1300 + row * 211 % 2700);
    rows.sequences.push_back(row);
  }
  rows.positions.push_back(1999);
  rows.sequences.push_back(decoding);
  for (std::int32_t row = 0; row < 23; ++row) {
    rows.positions.push_back(3000 + row);
    rows.sequences.push_back(decoding + 1);
  }
  Problem({.rows = rows,
           .sequences = decoding + 2,
           .context = 4032,
           .heads = 64,
           .k = 600,
           .score_rows = rows.size()})
      .Check();
}

// Tiles hold more rows than the test backend's scratch does.
TEST_CASE("SelectKeys equals its default body, a long prompt", "[kernels][select_keys]") {
  const auto score_rows = GENERATE(as<std::int64_t>(), 301, 700);
  const auto heads = GENERATE(as<std::int64_t>(), 16, 64);
  CAPTURE(score_rows, heads);
  auto made = CudaBackend::Make(0);
  REQUIRE(made.ok());
  ScratchLimits limits = testing::kTestLimits;
  limits.tokens_max = 700;
  REQUIRE(made.value()->ReserveScratch(limits).ok());
  testing::RowList rows;
  rows.has_runs = true;
  for (std::int32_t row = 0; row < 700; ++row) {
    const bool is_first = row < 301;  // the border lies within what would be a unit
    rows.positions.push_back(is_first ? 1800 + row : row - 301 + 5);
    rows.sequences.push_back(is_first ? 1 : 0);
  }
  Problem({.rows = rows,
           .sequences = 2,
           .context = 2176,
           .heads = heads,
           .k = 300,
           .score_rows = score_rows})
      .Check(*made.value());
}

TEST_CASE("SelectKeys equals its default body, a prompt of more rows than two tiles",
          "[kernels][select_keys]") {
  const auto score_rows = GENERATE(as<std::int64_t>(), 900, 1024);
  CAPTURE(score_rows);
  auto made = CudaBackend::Make(0);
  REQUIRE(made.ok());
  ScratchLimits limits = testing::kTestLimits;
  limits.tokens_max = 2301;
  REQUIRE(made.value()->ReserveScratch(limits).ok());
  testing::RowList rows{.positions = std::vector<std::int32_t>(2301),
                        .sequences = std::vector<std::int32_t>(2301, 0),
                        .has_runs = true};
  std::iota(rows.positions.begin(), rows.positions.end(), 100);
  Problem({.rows = rows,
           .sequences = 1,
           .context = 2432,
           .heads = 16,
           .k = 64,
           .score_rows = score_rows})
      .Check(*made.value());
}

TEST_CASE("SelectKeys reports a NaN of its own row alone", "[kernels][select_keys]") {
  Problem problem({.rows = OneEach({4000, 3000, 3500}),
                   .sequences = 3,
                   .context = 4032,
                   .heads = 64,
                   .k = 256,
                   .score_rows = 3});
  const auto spoil = [&](std::int64_t sequence, std::int64_t position) {
    const std::int64_t slot = problem.layout().Slot(sequence, position);
    problem.cache()[static_cast<std::size_t>(slot / 64 * 8448 + slot % 64 * 128 + 77)] = 0x7F;
  };
  spoil(1, 2999);
  spoil(2, 3500);  // just beyond what row 2 sees
  problem.Check();
  const Output output = problem.Run(testing::TestBackend());
  CHECK(output.faults == std::vector<std::int32_t>{4, 4 | kRowFaultIndexerNan, 4});
}

TEST_CASE("SelectKeys reports a NaN of its own rows alone, a long prompt",
          "[kernels][select_keys]") {
  auto made = CudaBackend::Make(0);
  REQUIRE(made.ok());
  ScratchLimits limits = testing::kTestLimits;
  limits.tokens_max = 300;
  REQUIRE(made.value()->ReserveScratch(limits).ok());
  testing::RowList rows{.positions = std::vector<std::int32_t>(300),
                        .sequences = std::vector<std::int32_t>(300, 0),
                        .has_runs = true};
  std::iota(rows.positions.begin(), rows.positions.end(), 1700);
  Problem problem(
      {.rows = rows, .sequences = 1, .context = 2048, .heads = 64, .k = 300, .score_rows = 300});
  constexpr std::int32_t kSpoiledKey = 1897;
  const std::int64_t slot = problem.layout().Slot(0, kSpoiledKey);
  problem.cache()[static_cast<std::size_t>(slot / 64 * 8448 + slot % 64 * 128 + 77)] = 0x7F;
  const std::vector<std::int32_t> spoiled = {8, 21, 34, 47, 100, 101};  // each place of a unit
  for (const std::int32_t row : spoiled) {
    problem.head_weights()[static_cast<std::size_t>(row) * 64 + 13] =
        std::numeric_limits<float>::quiet_NaN();
  }
  problem.Check(*made.value());
  const Output output = problem.Run(*made.value());
  for (std::int32_t row = 0; row < 300; ++row) {
    const bool is_spoiled = 1700 + row >= kSpoiledKey ||
                            std::find(spoiled.begin(), spoiled.end(), row) != spoiled.end();
    CHECK(output.faults[static_cast<std::size_t>(row)] ==
          (is_spoiled ? 4 | kRowFaultIndexerNan : 4));
  }
}

TEST_CASE("SelectKeys of equal scores selects the first keys", "[kernels][select_keys]") {
  Problem problem({.rows = OneEach({70000, 9000}),
                   .sequences = 2,
                   .context = 70016,
                   .heads = 64,
                   .k = 2048,
                   .score_rows = 2});
  for (float& weight : problem.head_weights()) {
    weight = 0.0F;
  }
  problem.Check();
}

// Keys that score the same as the one that is `rank`-th of a row's.
void RepeatKey(Problem& problem, std::int64_t rank, const std::vector<std::int64_t>& positions) {
  PlainBodies plain(testing::TestBackend());
  const std::vector<float> scores = problem.Run(plain).scores;
  std::vector<std::int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  const auto at = [&](std::int64_t position, std::int64_t scale) {
    const std::int64_t slot = problem.layout().Slot(0, position);
    return problem.cache().begin() + slot / 64 * 8448 +
           (scale != 0 ? 8192 + slot % 64 * 4 : slot % 64 * 128);
  };
  const std::int64_t from = order[static_cast<std::size_t>(rank)];
  for (const std::int64_t position : positions) {
    std::copy_n(at(from, 0), 128, at(position, 0));
    std::copy_n(at(from, 1), 4, at(position, 1));
  }
}

TEST_CASE("SelectKeys of equal scores about the threshold",
          "[kernels][select_keys][sixteen_blocks]") {
  constexpr std::int64_t kSelected = 2048;
  Problem problem({.rows = OneEach({70016}),
                   .sequences = 1,
                   .context = 70016,
                   .heads = 64,
                   .k = kSelected,
                   .score_rows = 1});
  std::vector<std::int64_t> positions;
  SECTION("far apart") {
    for (std::int64_t position = 17; position < 70000; position += 1000) {
      positions.push_back(position);
    }
  }
  SECTION("in one place, for a while") {
    for (std::int64_t position = 30000; position < 30028; ++position) {
      positions.push_back(position);
    }
  }
  SECTION("in one place, more than a line has") {
    for (std::int64_t position = 30000; position < 30600; ++position) {
      positions.push_back(position);
    }
  }
  RepeatKey(problem, kSelected - static_cast<std::int64_t>(positions.size()) / 2, positions);
  problem.Check();
}

TEST_CASE("SelectKeys equals its default body, 64 rows of all lengths", "[kernels][select_keys]") {
  const auto step = GENERATE(as<std::int32_t>(), 1, 37, 130);
  const auto absorbed_heads = GENERATE(as<std::int64_t>(), 0, 3, 70);  // 70: more tiles than teams
  CAPTURE(step, absorbed_heads);
  std::vector<std::int32_t> lengths(64);
  for (std::int32_t row = 0; row < 64; ++row) {
    lengths[static_cast<std::size_t>(row)] = 1 + (row * 29 % 64) * step;
  }
  Problem({.rows = OneEach(lengths),
           .sequences = 64,
           .context = 8256,
           .heads = 64,
           .k = 512,
           .score_rows = 64,
           .absorbed_heads = absorbed_heads})
      .Check();
}

// Up to 16 rows are scored by a kernel of their own, and up to 64 whose queries are absorbed
// beside.
TEST_CASE("SelectKeys equals its default body, rows of sequences in another order",
          "[kernels][select_keys]") {
  const auto count = GENERATE(as<std::int32_t>(), 9, 16, 17, 32, 33, 64, 97, 133);
  const auto heads = GENERATE(as<std::int64_t>(), 16, 64);
  const auto absorbed_heads = GENERATE(as<std::int64_t>(), 0, 3, 70);  // 70: more tiles than teams
  CAPTURE(count, heads, absorbed_heads);
  testing::RowList rows;
  rows.sequences.resize(static_cast<std::size_t>(count));
  rows.positions.resize(static_cast<std::size_t>(count));
  for (std::int32_t row = 0; row < count; ++row) {
    const auto i = static_cast<std::size_t>(row);
    rows.sequences[i] = row * 5 % count;
    rows.positions[i] = row % 11 == 3 ? row : 1500 + row * 131 % 2500;
  }
  Problem({.rows = rows,
           .sequences = count,
           .context = 4032,
           .heads = heads,
           .k = 512,
           .score_rows = count,
           .absorbed_heads = absorbed_heads})
      .Check();
}

// From 4,224 pages on the last quarter is handed out in pieces.
TEST_CASE("SelectKeys equals its default body, pages handed out in pieces",
          "[kernels][select_keys]") {
  const auto count = GENERATE(as<std::int32_t>(), 16, 31, 61);
  const auto absorbed_heads = GENERATE(as<std::int64_t>(), 0, 70);
  CAPTURE(count, absorbed_heads);
  testing::RowList rows;
  for (std::int32_t row = 0; row < count; ++row) {
    rows.sequences.push_back(row * 5 % count);
    rows.positions.push_back(16'900 + row * 7 % count * 13 % 250);
  }
  Problem({.rows = rows,
           .sequences = count,
           .context = 17'152,
           .heads = absorbed_heads > 0 ? 64 : 16,
           .k = 2048,
           .score_rows = count,
           .absorbed_heads = absorbed_heads})
      .Check();
}

TEST_CASE("SelectKeys replayed gives the same each time", "[kernels][select_keys]") {
  const Problem problem({.rows = OneEach({30000, 1, 20000, 2100, 8000, 64, 30000, 29000}),
                         .sequences = 8,
                         .context = 30016,
                         .heads = 64,
                         .k = 2048,
                         .score_rows = 8});
  PlainBodies plain(testing::TestBackend());
  const Output expected = problem.Run(plain);
  for (const int replays : {1, 2, 50, 400}) {
    CHECK(problem.Run(testing::TestBackend(), replays) == expected);
  }
}

}  // namespace dsa
