// SelectKeys on CUDA: the selection's kernel against a sort on the host, over scores that are hard
// to select from, and the whole op against its default body, the scores' bits included.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/index_selection.h"
#include "kernels/forwarding_backend.h"
#include "kernels/fused/select_keys.h"
#include "tests/kernels/paged_cache.h"

#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

namespace dsa {
namespace {

using testing::DeviceArray;
using testing::DeviceTensor;

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

std::vector<ScoreRow> HardRows(std::int64_t k, const std::vector<int>& lengths) {
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
    add("bell", n, bell);
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
  HardSelection(std::int64_t k, const std::vector<int>& lengths)
      : k_(k), rows_(HardRows(k, lengths)), context_(MaxLength() + 64) {
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

  void Check(int cluster) const {
    Backend& backend = testing::TestBackend();
    const auto rows = static_cast<std::int64_t>(rows_.size());
    const DeviceArray<std::int32_t> work(work_);
    const std::vector<std::int32_t> before(static_cast<std::size_t>(rows * k_), 77);
    const DeviceArray<std::int32_t> slots(before);
    const DeviceArray<std::int32_t> positions(before);
    const std::int64_t words = context_ / 64 + 1;
    const auto mask = DeviceArray<std::uint64_t>::Poisoned(rows * words);
    const auto counts = DeviceArray<std::int32_t>::Poisoned(rows);
    const DeviceArray<std::int32_t> faults(
        std::vector<std::int32_t>(static_cast<std::size_t>(rows), 4));
    cuda::IndexSelection({.scores = scores_->AsConstMatrix(rows, context_),
                          .rows = device_rows_->View(),
                          .k = k_,
                          .slots = slots.AsMatrix(rows, k_),
                          .mask = mask.AsMatrix(rows, words),
                          .positions = positions.AsMatrix(rows, k_),
                          .counts = counts.AsVector(),
                          .faults = faults.AsVector()},
                         work.data(), cluster, dynamic_cast<CudaBackend&>(backend).stream());
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

// Plain ops of the test backend, fused ones by their default bodies.
class PlainBodies final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
};

struct Shape {
  testing::RowList rows;
  std::int64_t sequences;
  std::int64_t context;  // a multiple of 64
  std::int64_t heads;
  std::int64_t k;
  std::int64_t score_rows;
  DataType type = DataType::kBf16;
};

// What a call writes.
struct Output {
  std::vector<std::int32_t> slots;
  std::vector<std::uint64_t> mask;
  std::vector<std::int32_t> counts;
  std::vector<std::int32_t> faults;
  std::vector<float> scores;  // of the last tile

  bool operator==(const Output& other) const {
    return slots == other.slots && mask == other.mask && counts == other.counts &&
           faults == other.faults;
  }
};

// Scores that differ in their bits.
std::size_t DifferentBits(const std::vector<float>& a, const std::vector<float>& b) {
  std::size_t different = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    different += std::bit_cast<std::uint32_t>(a[i]) == std::bit_cast<std::uint32_t>(b[i]) ? 0 : 1;
  }
  return different;
}

class Problem final {
 public:
  explicit Problem(Shape shape) : shape_(std::move(shape)) {
    std::mt19937 engine(11);
    layout_ = testing::ShuffledBlocks(shape_.sequences, shape_.context / 64, 3);
    cache_.resize(static_cast<std::size_t>(layout_.blocks) * 8448);
    for (std::size_t i = 0; i < cache_.size(); i += 4) {
      const auto codes = static_cast<std::uint32_t>(engine()) & 0xBFBFBFBFU;  // below 2: no NaN
      std::memcpy(&cache_[i], &codes, sizeof(codes));
      if (i % 8448 >= 8192) {
        const float scale = 0.01F * static_cast<float>(1 + codes % 7);
        std::memcpy(&cache_[i], &scale, sizeof(scale));
      }
    }
    const std::int64_t rows = shape_.rows.size();
    q_ = testing::RandomFloat(rows * shape_.heads * 128, 1.0F, 21);
    head_weights_ = testing::RandomFloat(rows * shape_.heads, 1.0F, 22);
  }

  std::vector<std::uint8_t>& cache() { return cache_; }
  std::vector<float>& head_weights() { return head_weights_; }
  const testing::PagedLayout& layout() const { return layout_; }

  Output Run(Backend& runner, int replays = 0) const {
    Backend& backend = testing::TestBackend();
    const std::int64_t rows = shape_.rows.size();
    const std::int64_t heads = shape_.heads;
    const DeviceTensor q(shape_.type, testing::Dense(rows, heads * 128), q_);
    const DeviceTensor weights(DataType::kF32, testing::Dense(rows, heads), head_weights_);
    const testing::RopeTables rope(backend, 32, shape_.rows.positions);
    const DeviceArray<std::uint8_t> cache(cache_);
    const testing::DeviceRows device_rows(backend, shape_.rows, layout_);
    const std::int64_t words = shape_.context / 64;
    const auto slots = DeviceArray<std::int32_t>::Poisoned(rows * shape_.k);
    const auto mask = DeviceArray<std::uint64_t>::Poisoned(rows * words);
    const auto counts = DeviceArray<std::int32_t>::Poisoned(rows);
    const DeviceArray<std::int32_t> faults(
        std::vector<std::int32_t>(static_cast<std::size_t>(rows), 4));
    const auto queries =
        DeviceTensor::Poisoned(DataType::kFp8E4m3, testing::Dense(rows, heads * 128));
    const auto work_weights = DeviceArray<float>::Poisoned(rows * heads);
    const auto scores = DeviceArray<float>::Poisoned(shape_.score_rows * shape_.context);
    const SelectKeysParams params{
        .q = q.Heads(heads),
        .head_weights = weights.View(),
        .table = rope.View(),
        .layout = RopeLayout::kHalfSplit,
        .cache = {.data = cache.data(), .blocks = layout_.blocks, .format = KvFormat::kFp8},
        .rows = device_rows.View(),
        .k = shape_.k,
        .slots = slots.AsMatrix(rows, shape_.k),
        .mask = mask.AsMatrix(rows, words),
        .counts = counts.AsVector(),
        .faults = faults.AsVector(),
        .queries = queries.Heads(heads),
        .weights = work_weights.AsMatrix(rows, heads),
        .scores = scores.AsMatrix(shape_.score_rows, shape_.context)};
    if (replays == 0) {
      runner.SelectKeys(params);
    } else {
      constexpr GraphId kGraph{7};
      runner.Record(kGraph, [&] { runner.SelectKeys(params); });
      for (int i = 0; i < replays; ++i) {
        runner.Zero(slots.data(), static_cast<std::size_t>(rows * shape_.k) * 4);
        runner.Replay(kGraph);
      }
    }
    return {.slots = slots.Download(),
            .mask = mask.Download(),
            .counts = counts.Download(),
            .faults = faults.Download(),
            .scores = scores.Download()};
  }

  // The same selections, and the same bits of every score.
  void Check() const {
    PlainBodies plain(testing::TestBackend());
    const Output expected = Run(plain);
    const Output actual = Run(testing::TestBackend());
    CHECK(actual.slots == expected.slots);
    CHECK(actual.mask == expected.mask);
    CHECK(actual.counts == expected.counts);
    CHECK(actual.faults == expected.faults);
    CHECK(DifferentBits(actual.scores, expected.scores) == 0);
  }

 private:
  Shape shape_;
  testing::PagedLayout layout_;
  std::vector<std::uint8_t> cache_;
  std::vector<float> q_;
  std::vector<float> head_weights_;
};

// Each row the last of its own sequence.
testing::RowList OneEach(const std::vector<std::int32_t>& lengths) {
  testing::RowList rows;
  for (const std::int32_t length : lengths) {
    rows.sequences.push_back(static_cast<std::int32_t>(rows.positions.size()));
    rows.positions.push_back(length - 1);
  }
  return rows;
}

}  // namespace

TEST_CASE("IndexSelection equals a sort of hard scores", "[kernels][select_keys]") {
  const HardSelection selection(2048, {2049, 6500, 70001, 131072});
  for (const int cluster : {1, 2, 4, 8, 16}) {
    selection.Check(cluster);
  }
}

TEST_CASE("IndexSelection selects any number of keys", "[kernels][select_keys]") {
  const auto k = GENERATE(as<std::int64_t>(), 1, 63, 500, 2047);
  const HardSelection selection(k, {700, 20001});
  for (const int cluster : {1, 2, 16}) {
    selection.Check(cluster);
  }
}

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

TEST_CASE("SelectKeys equals its default body, one long row", "[kernels][select_keys]") {
  const auto length = GENERATE(as<std::int32_t>(), 1, 2049, 65537, 131072);
  Problem({.rows = OneEach({length}),
           .sequences = 1,
           .context = 131072,
           .heads = 64,
           .k = 2048,
           .score_rows = 1})
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
  for (std::int32_t row = 0; row < 150; ++row) {
    rows.positions.push_back(row < 77 ? 900 + row : 130 + row);
    rows.sequences.push_back(row < 77 ? 0 : 1);
  }
  Problem({.rows = rows, .sequences = 2, .context = 1024, .heads = 64, .k = 200, .score_rows = 100})
      .Check();
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
