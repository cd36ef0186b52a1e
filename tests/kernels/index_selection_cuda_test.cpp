// The selection's kernel of SelectKeys against a sort on the host, over scores that are hard to
// select from.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/index_selection.h"
#include "tests/kernels/paged_cache.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <random>

namespace dsa {
namespace {

using testing::DeviceArray;

// The histogram of a row, restated: 1024 bins of negative scores and one about zero, 1023 of
// positive ones, 32 an octave from 2^-20 on; then the flag of a NaN.
constexpr std::size_t kBins = 2048;
constexpr std::size_t kRowWork = kBins + 32;
std::size_t BinOf(float score) {
  const float magnitude = std::min(std::fabs(score), 0x1p13F);
  if (magnitude < 0x1p-20F) {
    return 1024;
  }
  int exponent = 0;
  const float fraction = std::frexp(magnitude, &exponent);  // in [1/2, 1)
  const int bin = (exponent + 19) * 32 + static_cast<int>((fraction - 0.5F) * 64.0F);
  return static_cast<std::size_t>(score > 0 ? std::min(1025 + bin, 2047) : std::max(1023 - bin, 0));
}

struct ScoreRow {
  std::string name;
  std::vector<float> scores;  // of the visible keys
};

// Rows of at most `longest` scores, the hard ones of each of `lengths`.
std::vector<ScoreRow> HardRows(std::int64_t k, const std::vector<int>& lengths, int longest) {
  std::mt19937 engine(7);
  std::normal_distribution<float> normal;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto zero = [&] { return (engine() & 1U) != 0 ? 0.0F : -0.0F; };
  const auto bell = [&](int) { return normal(engine); };
  std::vector<ScoreRow> rows;
  const auto add = [&](const char* name, int n, const std::function<float(int)>& score) {
    ScoreRow& row = rows.emplace_back(
        ScoreRow{.name = std::string(name) + " " + std::to_string(n), .scores = {}});
    for (int i = 0; i < n; ++i) {
      row.scores.push_back(score(i));
    }
  };
  for (const int n :
       {1,    2,    63,   64,   65,   127,  2047, 2048,  2049,  2050,  2112,  4095, 4096,
        4097, 6143, 6144, 6145, 8191, 8192, 8193, 16384, 30001, 65535, 65536, 65537}) {
    if (n <= longest) {
      add("bell", n, bell);
    }
  }
  for (const int n : lengths) {
    add("bell", n, bell);
    add("equal", n, [](int) { return 1.5F; });
    add("zeros", n, [&](int) { return zero(); });
    add("mostly zeros", n, [&](int) { return engine() % 100 != 0 ? zero() : std::fabs(bell(0)); });
    add("half zeros", n, [&](int) { return engine() % 10 < 6 ? zero() : std::fabs(bell(0)); });
    add("negative", n, [&](int) { return -std::fabs(bell(0)) - 1e-3F; });
    add("one bin", n, [&](int) { return 1.0F + static_cast<float>(engine() % 200000) * 1e-7F; });
    add("few values of a bin", n,
        [&](int) { return 1.0F + static_cast<float>(engine() % 5) * 1.2e-7F; });
    add("two values", n, [&](int) { return (engine() & 1U) != 0 ? 3.0F : 2.0F; });
    add("narrow", n, [&](int) { return 100.0F + bell(0); });
    add("denormal", n, [&](int) { return static_cast<float>(engine() % 100000) * 1e-44F; });
    add("huge", n, [&](int) { return bell(0) * 1e36F; });
    add("infinite", n, [&](int) {
      const auto third = engine() % 3;
      return third == 0 ? kInfinity : (third == 1 ? -kInfinity : bell(0));
    });
    add("minus infinity", n, [&](int) { return -kInfinity; });
    add("ascending", n, [](int i) { return static_cast<float>(i) * 0.25F; });
    add("descending", n, [](int i) { return static_cast<float>(-i) * 0.25F; });
    add("best last", n, [&](int i) { return i >= n - k ? 10.0F + bell(0) : bell(0); });
    add("all magnitudes", n, [&](int) {
      const auto bits = static_cast<std::uint32_t>(engine());
      return std::bit_cast<float>((bits >> 23 & 255U) == 255U ? bits ^ 1U << 28 : bits);
    });
    add("NaN first", n, [&](int i) { return i == 0 ? nan : bell(0); });
    add("NaN last", n, [&](int i) { return i == n - 1 ? -nan : bell(0); });
  }
  add("NaN among few", 100, [&](int i) { return i == 99 ? nan : bell(0); });
  return rows;
}

// Positions in order, then -1.
std::vector<std::int32_t> ExpectedPositions(const std::vector<float>& scores, std::int64_t k) {
  const auto count = std::min(static_cast<std::size_t>(k), scores.size());
  std::vector<std::int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const bool has_nan =
      std::any_of(scores.begin(), scores.end(), [](float score) { return std::isnan(score); });
  if (!has_nan && count < order.size()) {
    std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count) - 1,
                     order.end(), [&](std::int32_t a, std::int32_t b) {
                       const float x = scores[static_cast<std::size_t>(a)];
                       const float y = scores[static_cast<std::size_t>(b)];
                       return x != y ? x > y : a < b;
                     });
  }
  order.resize(count);
  std::sort(order.begin(), order.end());
  order.resize(static_cast<std::size_t>(k), -1);
  return order;
}

// Scores, histograms and expectations of some rows, on the device where the kernel reads them.
class HardSelection final {
 public:
  HardSelection(std::int64_t k, const std::vector<int>& lengths, int longest)
      : k_(k), rows_(HardRows(k, lengths, longest)), context_(MaxLength() + 64) {
    const std::size_t rows = rows_.size();
    std::vector<float> scores(rows * static_cast<std::size_t>(context_),
                              std::numeric_limits<float>::quiet_NaN());
    work_.assign(rows * kRowWork + 32, 0);
    for (std::size_t row = 0; row < rows; ++row) {
      const std::vector<float>& visible = rows_[row].scores;
      std::copy(visible.begin(), visible.end(),
                scores.begin() + static_cast<std::ptrdiff_t>(row) * context_);
      for (const float score : visible) {
        if (std::isnan(score)) {
          work_[row * kRowWork + kBins] = 1;
        } else if (static_cast<std::int64_t>(visible.size()) > k) {
          ++work_[row * kRowWork + BinOf(score)];
        }
      }
      list_.positions.push_back(static_cast<std::int32_t>(visible.size()) - 1);
      list_.sequences.push_back(static_cast<std::int32_t>(row % 3));
      expected_.push_back(ExpectedPositions(visible, k));
    }
    scores_.emplace(scores);
    layout_ = testing::ShuffledBlocks(3, context_ / 64, 5);
    device_rows_.emplace(testing::TestBackend(), list_, layout_);
  }

  std::size_t rows() const { return rows_.size(); }

  // By IndexSelectionOfFew where `few_rows` is above 0, so many rows at a time.
  // Without `has_counts` no histogram has a key.
  void Check(int cluster, std::int64_t few_rows = 0, bool has_counts = true) const {
    Backend& backend = testing::TestBackend();
    const auto rows = static_cast<std::int64_t>(rows_.size());
    const DeviceArray<std::int32_t> work(has_counts ? work_ : WithoutCounts());
    const std::vector<std::int32_t> before(static_cast<std::size_t>(rows * k_), 77);
    const DeviceArray<std::int32_t> slots(before);
    const DeviceArray<std::int32_t> positions(before);
    const std::int64_t words = context_ / 64 + 1;
    const auto mask = DeviceArray<std::uint64_t>::Poisoned(rows * words);
    const auto counts = DeviceArray<std::int32_t>::Poisoned(rows);
    const DeviceArray<std::int32_t> faults(
        std::vector<std::int32_t>(static_cast<std::size_t>(rows), 4));
    const cudaStream_t stream = dynamic_cast<CudaBackend&>(backend).stream();
    const std::int64_t rows_each = few_rows > 0 ? few_rows : rows;
    for (std::int64_t first = 0; first < rows; first += rows_each) {
      const std::int64_t count = std::min(rows_each, rows - first);
      const SelectTopKParams params{
          .scores = RowsOf(scores_->AsConstMatrix(rows, context_), first, count),
          .rows = RowsOf(device_rows_->View(), first, count),
          .k = k_,
          .slots = RowsOf(slots.AsMatrix(rows, k_), first, count),
          .mask = RowsOf(mask.AsMatrix(rows, words), first, count),
          .positions = RowsOf(positions.AsMatrix(rows, k_), first, count),
          .counts = RowsOf(counts.AsVector(), first, count),
          .faults = RowsOf(faults.AsVector(), first, count)};
      const std::int32_t* of_rows = work.data() + first * static_cast<std::int64_t>(kRowWork);
      if (few_rows > 0) {
        REQUIRE(cuda::IndexSelectionOfFew(params, of_rows, stream));
      } else {
        cuda::IndexSelection(params, of_rows, cluster, stream);
      }
    }
    const auto actual = positions.Download();
    const auto actual_slots = slots.Download();
    const auto actual_mask = mask.Download();
    const auto actual_counts = counts.Download();
    const auto actual_faults = faults.Download();
    for (std::int64_t row = 0; row < rows; ++row) {
      const auto i = static_cast<std::size_t>(row);
      CAPTURE(rows_[i].name, cluster);
      const auto from = actual.begin() + row * k_;
      CHECK(std::vector<std::int32_t>(from, from + k_) == expected_[i]);
      std::vector<std::uint64_t> bits(static_cast<std::size_t>(words), 0);
      std::size_t wrong_slots = 0;
      for (std::size_t place = 0; place < expected_[i].size(); ++place) {
        const std::int32_t position = expected_[i][place];
        if (position >= 0) {
          bits[static_cast<std::size_t>(position / 64)] |= std::uint64_t{1} << (position % 64);
        }
        const std::int64_t slot = position < 0 ? -1 : layout_.Slot(row % 3, position);
        wrong_slots += actual_slots[i * static_cast<std::size_t>(k_) + place] == slot ? 0 : 1;
      }
      CHECK(wrong_slots == 0);
      const auto words_from = actual_mask.begin() + row * words;
      CHECK(std::vector<std::uint64_t>(words_from, words_from + words) == bits);
      CHECK(actual_counts[i] == std::min<std::int64_t>(k_, list_.positions[i] + 1));
      CHECK(actual_faults[i] == (work_[i * kRowWork + kBins] != 0 ? 4 | kRowFaultIndexerNan : 4));
    }
  }

 private:
  std::vector<std::int32_t> WithoutCounts() const {
    std::vector<std::int32_t> work(work_.size(), 0);
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      work[row * kRowWork + kBins] = work_[row * kRowWork + kBins];
    }
    return work;
  }
  std::int64_t MaxLength() const {
    std::size_t longest = 0;
    for (const ScoreRow& row : rows_) {
      longest = std::max(longest, row.scores.size());
    }
    return static_cast<std::int64_t>(longest + 63) / 64 * 64;
  }

  std::int64_t k_;
  std::vector<ScoreRow> rows_;
  std::int64_t context_;
  std::vector<std::int32_t> work_;
  testing::RowList list_;
  testing::PagedLayout layout_;
  std::vector<std::vector<std::int32_t>> expected_;
  std::optional<DeviceArray<float>> scores_;
  std::optional<testing::DeviceRows> device_rows_;
};

}  // namespace

TEST_CASE("IndexSelection equals a sort of hard scores", "[kernels][select_keys]") {
  const HardSelection selection(2048, {2049, 6500, 70001, 131072}, 131072);
  for (const int cluster : {1, 2, 4, 8}) {
    selection.Check(cluster);
  }
}

// A case of their own for a sanitizer that does not know them (tools/gpu.sh).
TEST_CASE("IndexSelection equals a sort of hard scores in clusters of 16",
          "[kernels][select_keys][sixteen_blocks]") {
  const auto k = GENERATE(as<std::int64_t>(), 63, 2047, 2048);
  HardSelection(k, {2049, 6500, 70001, 131072}, 131072).Check(16);
}

TEST_CASE("IndexSelection equals a sort of a million hard scores",
          "[kernels][select_keys][real_sizes]") {
  const HardSelection selection(2048, {1 << 20}, 2049);
  for (const int cluster : {4, 8, 16}) {  // fewer blocks have no room for so many keys
    selection.Check(cluster);
  }
}

TEST_CASE("IndexSelectionOfFew equals a sort of hard scores", "[kernels][select_keys]") {
  const auto k = GENERATE(as<std::int64_t>(), 1, 63, 2047, 2048);
  const HardSelection short_rows(k, {2049, 4097, 6500, 8128}, 8128);
  for (const std::int64_t rows : {14, 16, 66, 132}) {  // in clusters of 8, 4 and 2, and alone
    short_rows.Check(0, rows);
  }
  for (const std::int64_t rows : {14, 66, 132}) {
    short_rows.Check(0, rows, false);
  }
  HardSelection(k, {2049, 6500, 16320}, 16320).Check(0, 66);
  HardSelection(k, {2049, 30001, 65472}, 65472).Check(0, 16);
}

TEST_CASE("IndexSelectionOfFew equals a sort of hard scores in clusters of 16",
          "[kernels][select_keys][sixteen_blocks]") {
  const auto k = GENERATE(as<std::int64_t>(), 63, 2048);
  HardSelection(k, {2049, 6500, 70001, 131008}, 131008).Check(0, 8);
}

TEST_CASE("IndexSelection equals a sort of hard scores, more short rows than blocks",
          "[kernels][select_keys]") {
  const HardSelection selection(2048,
                                {2049, 2050, 3000, 4095, 4096, 4097, 5000, 6143, 6145, 7000, 8192,
                                 12001, 16385, 20001, 30001, 32000},
                                32000);
  REQUIRE(selection.rows() > 264);
  selection.Check(1);
}

TEST_CASE("IndexSelection selects any number of keys", "[kernels][select_keys]") {
  const auto k = GENERATE(as<std::int64_t>(), 1, 63, 500, 2047);
  const HardSelection selection(k, {700, 20001}, 131072);
  for (const int cluster : {1, 2, 8}) {
    selection.Check(cluster);
  }
}

}  // namespace dsa
