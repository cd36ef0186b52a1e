// SelectTopK against a full sort by (score descending, position ascending).
#include "kernels/ops/select_top_k.h"

#include "kernels/batch_view.h"
#include "tests/kernels/paged_cache.h"

#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace dsa::select_top_k_test {
namespace {

struct Output {
  std::vector<std::int32_t> selected;  // [T * K]  positions
  std::vector<std::int32_t> slots;     // [T * K]
  std::vector<std::uint64_t> mask;     // [T * W]
  std::vector<std::int32_t> counts;
  std::vector<std::int32_t> faults;

  bool operator==(const Output&) const = default;
};

struct Input {
  std::int64_t context;  // columns of scores
  std::int64_t k;
  std::vector<std::int32_t> positions;
  std::vector<float> scores;  // [T * context]
};

constexpr std::int32_t kEarlierFault = 4;  // must stay
constexpr std::int64_t kSequences = 3;

enum class Wanted : std::uint8_t { kEverything, kSlots, kMask };

// Row t is of sequence t % 3; blocks are scattered.
testing::PagedLayout LayoutOf(const Input& input) {
  return testing::ShuffledBlocks(kSequences, (input.context + 63) / 64, 45);
}
// One word more than the context needs: it must be zeroed.
std::int64_t MaskWords(const Input& input) {
  return (input.context + 63) / 64 + 1;
}

Output Run(Backend& backend, const Input& input, Wanted wanted = Wanted::kEverything) {
  const auto tokens = static_cast<std::int64_t>(input.positions.size());
  const testing::DeviceArray<float> scores(backend, input.scores);
  testing::RowList list = {.positions = input.positions, .sequences = {}};
  for (std::int64_t row = 0; row < tokens; ++row) {
    list.sequences.push_back(static_cast<std::int32_t>(row % kSequences));
  }
  const testing::DeviceRows rows(backend, list, LayoutOf(input));
  // Not poisoned: poison reads as -1, which is what must be written.
  const std::vector<std::int32_t> before(static_cast<std::size_t>(tokens * input.k), 77);
  const testing::DeviceArray<std::int32_t> selected(backend, before);
  const testing::DeviceArray<std::int32_t> slots(backend, before);
  const auto mask =
      testing::DeviceArray<std::uint64_t>::Poisoned(backend, tokens * MaskWords(input));
  const auto counts = testing::DeviceArray<std::int32_t>::Poisoned(backend, tokens);
  const testing::DeviceArray<std::int32_t> faults(
      backend, std::vector<std::int32_t>(input.positions.size(), kEarlierFault));
  backend.SelectTopK(
      {.scores = scores.AsConstMatrix(tokens, input.context),
       .rows = rows.View(),
       .k = input.k,
       .slots = wanted == Wanted::kMask ? Matrix<std::int32_t>{} : slots.AsMatrix(tokens, input.k),
       .mask = wanted == Wanted::kSlots ? Matrix<std::uint64_t>{}
                                        : mask.AsMatrix(tokens, MaskWords(input)),
       .positions = wanted == Wanted::kEverything ? selected.AsMatrix(tokens, input.k)
                                                  : Matrix<std::int32_t>{},
       .counts = counts.AsVector(),
       .faults = faults.AsVector()});
  return {.selected = selected.Download(),
          .slots = slots.Download(),
          .mask = mask.Download(),
          .counts = counts.Download(),
          .faults = faults.Download()};
}

// Whether slots and mask say what the positions say.
void CheckParts(const Input& input, const Output& output) {
  const testing::PagedLayout layout = LayoutOf(input);
  std::vector<std::int32_t> slots;
  std::vector<std::uint64_t> mask(output.mask.size(), 0);
  for (std::size_t i = 0; i < output.selected.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / input.k;
    const std::int32_t position = output.selected[i];
    if (position < 0) {
      slots.push_back(-1);
      continue;
    }
    slots.push_back(static_cast<std::int32_t>(layout.Slot(row % kSequences, position)));
    mask[static_cast<std::size_t>(row * MaskWords(input) + position / 64)] |= std::uint64_t{1}
                                                                              << (position % 64);
  }
  CHECK(output.slots == slots);
  CHECK(output.mask == mask);
}

// The selection of one row, padded with -1.
std::vector<std::int32_t> ExpectedRow(const Input& input, std::size_t row) {
  const float* const scores = input.scores.data() + row * static_cast<std::size_t>(input.context);
  std::vector<std::int32_t> order(static_cast<std::size_t>(input.positions[row] + 1));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [scores](std::int32_t a, std::int32_t b) {
    return scores[a] > scores[b];  // -0 > +0 is false, both ways
  });
  order.resize(std::min(order.size(), static_cast<std::size_t>(input.k)));
  std::sort(order.begin(), order.end());
  order.resize(static_cast<std::size_t>(input.k), -1);
  return order;
}

void CheckAgainstSort(const Input& input) {
  const Output output = Run(testing::TestBackend(), input);
  CheckParts(input, output);
  for (std::size_t row = 0; row < input.positions.size(); ++row) {
    CAPTURE(row, input.positions[row], input.k);
    const auto begin = output.selected.begin() + static_cast<std::ptrdiff_t>(row) * input.k;
    REQUIRE(std::vector<std::int32_t>(begin, begin + input.k) == ExpectedRow(input, row));
    REQUIRE(output.counts[row] == std::min<std::int64_t>(input.k, input.positions[row] + 1));
    REQUIRE(output.faults[row] == kEarlierFault);
  }
}

// A score that takes few distinct values in some modes, so that ties cross the border.
float DrawScore(int mode, std::mt19937& engine) {
  std::normal_distribution<float> normal(0.0F, 1.0F);
  const float value = normal(engine);
  switch (mode) {
    case 0: return value;
    case 1: return std::round(value * 2.0F) / 2.0F;  // many ties, -0 among them
    case 2: return 1.0F;                             // all equal
    case 3: return value * 1e-40F;                   // subnormal
    case 4:
      return value > 1 ? std::numeric_limits<float>::infinity()
                       : (value < -1 ? -std::numeric_limits<float>::infinity() : value);
    case 5: return value > 0 ? 0.0F : -0.0F;
    case 6:
      return std::bit_cast<float>(
          0x3F800000U + static_cast<std::uint32_t>(engine() % 1500U));  // differ in the last bits
    case 7: return -std::fabs(value);
    default: return value < 0 ? 0.0F : value;
  }
}

}  // namespace

TEST_CASE("SelectTopK equals a full sort", "[kernels][select_top_k]") {
  std::mt19937 engine(41);
  for (int mode = 0; mode <= 8; ++mode) {
    for (const std::int64_t k : {1, 7, 64, 256}) {
      CAPTURE(mode, k);
      Input input = {.context = 700, .k = k, .positions = {}, .scores = {}};
      for (std::int32_t row = 0; row < 24; ++row) {
        const std::int32_t borders[] = {0,
                                        static_cast<std::int32_t>(k) - 1,
                                        static_cast<std::int32_t>(k),
                                        std::max(static_cast<std::int32_t>(k) - 2, 0),
                                        static_cast<std::int32_t>(k) + 8,
                                        699};
        input.positions.push_back(row < 6 ? borders[row]
                                          : static_cast<std::int32_t>(engine() % 700U));
      }
      for (std::int64_t i = 0; i < 24 * input.context; ++i) {
        input.scores.push_back(DrawScore(mode, engine));
      }
      CheckAgainstSort(input);
    }
  }
}

TEST_CASE("SelectTopK selects 2048 of a long context", "[kernels][select_top_k][slow]") {
  const auto context = GENERATE(as<std::int64_t>(), 2049, 131072, 1 << 20);
  std::mt19937 engine(42);
  for (const int mode : {0, 1, 6, 8}) {
    CAPTURE(context, mode);
    Input input = {.context = context,
                   .k = 2048,
                   .positions = {static_cast<std::int32_t>(context) - 1, 2047, 2048},
                   .scores = {}};
    for (std::int64_t i = 0; i < 3 * context; ++i) {
      input.scores.push_back(DrawScore(mode, engine));
    }
    CheckAgainstSort(input);
  }
}

TEST_CASE("SelectTopK marks a visible NaN and selects the first positions",
          "[kernels][select_top_k]") {
  const auto at = GENERATE(as<std::size_t>(), 0, 63, 99);
  const float nan = GENERATE(std::nanf(""), -std::nanf(""));
  Input input = {.context = 128,
                 .k = 16,
                 .positions = {99, 99, static_cast<std::int32_t>(at) - 1, 10},
                 .scores = testing::RandomFloat(4 * 128, 1.0F, 43)};
  input.scores[128 + at] = nan;
  input.scores[256 + at] = nan;  // just beyond what row 2 sees
  if (at == 0) {
    input.positions[2] = 0;
    input.scores[256] = 1.0F;
  }
  input.scores[384 + 11] = nan;

  const Output output = Run(testing::TestBackend(), input);

  CHECK(output.faults == std::vector<std::int32_t>{kEarlierFault,
                                                   kEarlierFault | kRowFaultIndexerNan,
                                                   kEarlierFault, kEarlierFault});
  std::vector<std::int32_t> first(16);
  std::iota(first.begin(), first.end(), 0);
  CHECK(std::equal(first.begin(), first.end(), output.selected.begin() + 16));
  CHECK(output.counts[1] == 16);
  CheckParts(input, output);
  for (const std::size_t row : {0, 2, 3}) {
    const auto begin = output.selected.begin() + static_cast<std::ptrdiff_t>(row * 16);
    CHECK(std::vector<std::int32_t>(begin, begin + 16) == ExpectedRow(input, row));
  }
}

TEST_CASE("SelectTopK marks a NaN in a row that sees few keys", "[kernels][select_top_k]") {
  Input input = {.context = 64, .k = 16, .positions = {5}, .scores = std::vector<float>(64, 1.0F)};
  input.scores[5] = std::nanf("");
  const Output output = Run(testing::TestBackend(), input);
  CHECK(output.faults.front() == (kEarlierFault | kRowFaultIndexerNan));
  CHECK(output.counts.front() == 6);
}

TEST_CASE("SelectTopK gives the same on every number of threads", "[kernels][select_top_k]") {
  std::mt19937 engine(44);
  Input input = {.context = 512, .k = 64, .positions = {}, .scores = {}};
  for (std::int32_t row = 0; row < 13; ++row) {
    input.positions.push_back(row * 39);
  }
  for (std::int64_t i = 0; i < 13 * 512; ++i) {
    input.scores.push_back(DrawScore(1, engine));
  }
  const Output expected = Run(testing::TestBackend(), input);
  for (Backend* backend : testing::BackendVariants()) {
    CHECK(Run(*backend, input) == expected);
  }
}

TEST_CASE("SelectTopK writes what is wanted and nothing else", "[kernels][select_top_k]") {
  std::mt19937 engine(46);
  Input input = {.context = 300, .k = 32, .positions = {3, 31, 32, 299, 128}, .scores = {}};
  for (std::int64_t i = 0; i < 5 * 300; ++i) {
    input.scores.push_back(DrawScore(1, engine));
  }
  const Output all = Run(testing::TestBackend(), input);
  const std::vector<std::int32_t> untouched(all.slots.size(), 77);
  const Output slots = Run(testing::TestBackend(), input, Wanted::kSlots);
  CHECK(slots.slots == all.slots);
  CHECK(slots.counts == all.counts);
  CHECK(slots.selected == untouched);
  CHECK(slots.mask == std::vector<std::uint64_t>(all.mask.size(), ~std::uint64_t{0}));
  const Output mask = Run(testing::TestBackend(), input, Wanted::kMask);
  CHECK(mask.mask == all.mask);
  CHECK(mask.counts == all.counts);
  CHECK(mask.selected == untouched);
  CHECK(mask.slots == untouched);
}

TEST_CASE("SelectTopK takes no rows", "[kernels][select_top_k]") {
  const Input input = {.context = 64, .k = 16, .positions = {}, .scores = {}};
  CHECK(Run(testing::TestBackend(), input).counts.empty());
}

}  // namespace dsa::select_top_k_test
