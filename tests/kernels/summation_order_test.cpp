// The order of sums on the CPU (docs/numerics.md), to the last bit: what the fast code computes for
// every shape is what one loop over the terms of one result computes.
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/products.h"
#include "kernels/ops/indexer_logits.h"
#include "tests/kernels/paged_cache.h"

#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace dsa::summation_order_test {
namespace {

// Equal bits; any NaN equals any other.
bool Same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

// Product k to lane k mod 4 of doubles; (0 + 2) + (1 + 3).
double LaneSum(const float* a, const float* b, std::int64_t n) {
  double lanes[4] = {};
  for (std::int64_t k = 0; k < n; ++k) {
    lanes[k % 4] = std::fma(double{a[k]}, double{b[k]}, lanes[k % 4]);
  }
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

// ---- products ----

enum class Scales : std::uint8_t {
  kNone,        // the values have none
  kPowerOfTwo,  // as DeepSeek-V3.2's
  kPlain,       // as DeepSeek-V3's
  kMixed,       // a block of the one kind beside blocks of the other
  kFarFromOne,  // powers of two of which some make values overflow, underflow or vanish
  kCancelling,  // none; lane 1 of a sum takes away what lane 0 has, far above the other two
  kAbsorbing,   // none; of three products of a lane the first swallows the second, the third takes
                // the first away
};

struct Case {
  DataType x;
  DataType weight;
  Scales scales;
};

float ScaleAt(Scales scales, std::int64_t i) {
  constexpr std::array kFar = {0x1p-126F, 0x1p-127F, 0x1p-149F, 0x1p119F, 0x1p120F, 0x1p127F, 0.0F};
  switch (scales) {
    case Scales::kPowerOfTwo: return std::ldexp(1.0F, static_cast<int>(i % 9) - 12);
    case Scales::kPlain: return 0.013F + 0.0031F * static_cast<float>(i % 7);
    case Scales::kMixed: return i % 3 == 1 ? 0.3F : 0.25F;
    case Scales::kFarFromOne: return kFar[static_cast<std::size_t>(i) % kFar.size()];
    case Scales::kNone:
    case Scales::kCancelling:
    case Scales::kAbsorbing: break;
  }
  return 1.0F;
}

// Rows as they are stored, and the values that they stand for.
struct Rows {
  std::int64_t cols;
  std::int64_t stride;
  DataType type;
  std::vector<std::uint8_t> bytes;  // NaN behind each row
  std::vector<float> scales;
  std::vector<float> values;  // [rows, cols]  scales applied, each product rounded

  MatmulRows View() const {
    return {.data = bytes.data(),
            .type = type,
            .row_stride = stride,
            .scales = scales.empty() ? nullptr : scales.data(),
            .scale_stride = scales.empty() ? 0 : (cols + 127) / 128};
  }
  const float* Row(std::int64_t row) const { return values.data() + row * cols; }
};

// `rows_per_scale`: 1 for x, 128 for weights.
Rows MakeRows(DataType type, std::int64_t rows, std::int64_t cols, Scales scales,
              std::int64_t rows_per_scale, std::uint32_t seed) {
  Rows made = {
      .cols = cols, .stride = cols + 3, .type = type, .bytes = {}, .scales = {}, .values = {}};
  const bool fp8 = type == DataType::kFp8E4m3;
  made.bytes.assign(static_cast<std::size_t>(rows * made.stride * SizeOf(type)), 0xFF);
  std::vector<float> random = testing::RandomFloat(rows * cols, fp8 ? 60.0F : 1.0F, seed);
  for (std::int64_t i = 0; scales == Scales::kCancelling && i < rows * cols; ++i) {
    const bool of_x = rows_per_scale == 1;
    if (i % cols % 4 == 0 && of_x) {
      random[static_cast<std::size_t>(i)] *= 1e17F;
    } else if (i % cols % 4 == 1) {
      random[static_cast<std::size_t>(i)] =
          random[static_cast<std::size_t>(i - 1)] * (of_x ? -1.0F : 1.0F);
    }
  }
  for (std::int64_t i = 0; scales == Scales::kAbsorbing && i < rows * cols; ++i) {
    const bool of_x = rows_per_scale == 1;
    const std::int64_t turn = i % cols / 4 % 3;
    if (turn == 0 && of_x) {
      random[static_cast<std::size_t>(i)] *= 1e17F;
    } else if (turn == 2) {
      random[static_cast<std::size_t>(i)] =
          random[static_cast<std::size_t>(i - 8)] * (of_x ? -1.0F : 1.0F);
    }
  }
  const std::int64_t blocks = (cols + 127) / 128;
  if (fp8) {
    for (std::int64_t i = 0; i < (rows + rows_per_scale - 1) / rows_per_scale * blocks; ++i) {
      made.scales.push_back(ScaleAt(scales, i + cols));
    }
  }
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    const std::int64_t row = i / cols;
    const std::int64_t col = i % cols;
    std::uint8_t* const target = made.bytes.data() + (row * made.stride + col) * SizeOf(type);
    const float value = random[static_cast<std::size_t>(i)];
    if (type == DataType::kF32) {
      std::memcpy(target, &value, sizeof(value));
      made.values.push_back(value);
    } else if (type == DataType::kBf16) {
      const Bf16 narrow = ToBf16(value);
      std::memcpy(target, &narrow, sizeof(narrow));
      made.values.push_back(ToFloat(narrow));
    } else {
      // Most values as a trained weight has them; in one row of five every code there is.
      const Fp8E4m3 code =
          row % 5 == 4 ? Fp8E4m3{static_cast<std::uint8_t>(i * 37)} : ToFp8E4m3(value);
      const bool nan = (code.bits & 0x7F) == 0x7F && row % 10 != 9;
      *target = nan ? std::uint8_t{0x38} : code.bits;
      const float scale =
          made.scales[static_cast<std::size_t>(row / rows_per_scale * blocks + col / 128)];
      made.values.push_back(ToFloat(Fp8E4m3{*target}) * scale);
    }
  }
  return made;
}

}  // namespace

TEST_CASE("A product's bits are those of its terms in order, for every shape",
          "[kernels][linear][order]") {
  const auto c = GENERATE(values<Case>({
      {DataType::kF32, DataType::kF32, Scales::kNone},
      {DataType::kF32, DataType::kF32, Scales::kCancelling},
      {DataType::kF32, DataType::kF32, Scales::kAbsorbing},
      {DataType::kBf16, DataType::kBf16, Scales::kNone},
      {DataType::kBf16, DataType::kBf16, Scales::kAbsorbing},
      {DataType::kF32, DataType::kBf16, Scales::kNone},
      {DataType::kFp8E4m3, DataType::kFp8E4m3, Scales::kPowerOfTwo},
      {DataType::kFp8E4m3, DataType::kFp8E4m3, Scales::kPlain},
      {DataType::kFp8E4m3, DataType::kFp8E4m3, Scales::kMixed},
      {DataType::kFp8E4m3, DataType::kFp8E4m3, Scales::kFarFromOne},
  }));
  const auto inputs = GENERATE(as<std::int64_t>(), 1, 3, 31, 32, 33, 100, 128, 129, 260, 384);
  const auto outputs = GENERATE(as<std::int64_t>(), 1, 6, 133);
  constexpr std::int64_t kRowsMax = 64;
  CAPTURE(testing::Name(c.x), testing::Name(c.weight), static_cast<int>(c.scales), inputs, outputs);
  const Rows x = MakeRows(c.x, kRowsMax, inputs, c.scales, 1, 11);
  const Rows weight = MakeRows(c.weight, outputs, inputs, c.scales, 128, 12);
  std::vector<float> expected;
  for (std::int64_t i = 0; i < kRowsMax * outputs; ++i) {
    expected.push_back(
        static_cast<float>(LaneSum(x.Row(i / outputs), weight.Row(i % outputs), inputs)));
  }
  ScratchMaker maker(ScratchMaker::Mode::kAllocate);
  const MatmulScratch scratch = MakeMatmulScratch(384, maker);
  std::vector<cpu::CpuLevel> cpu_levels = {cpu::CpuLevel::kAvx2};
  if (cpu::MachineLevel() == cpu::CpuLevel::kAvx512) {
    cpu_levels.push_back(cpu::CpuLevel::kAvx512);
  }
  for (std::int64_t rows = 1; rows <= kRowsMax; rows += rows < 10 ? 1 : 9) {
    for (const cpu::CpuLevel level : cpu_levels) {
      std::vector<float> y(expected.size(), -1.0F);
      const MatmulProblem problem = {.x = x.View(),
                                     .weight = weight.View(),
                                     .y = y.data(),
                                     .y_type = DataType::kF32,
                                     .y_row_stride = outputs,
                                     .rows = rows,
                                     .inputs = inputs,
                                     .outputs = outputs};
      const std::int64_t units = MatmulUnits(problem);
      const std::int64_t half = units / 2;  // as two threads do
      RunMatmulUnits(problem, half, units, scratch, level);
      RunMatmulUnits(problem, 0, half, scratch, level);
      std::int64_t wrong = 0;
      for (std::size_t i = 0; i < y.size(); ++i) {
        const bool written = static_cast<std::int64_t>(i) < rows * outputs;
        wrong += Same(y[i], written ? expected[i] : -1.0F) ? 0 : 1;
      }
      CAPTURE(rows, static_cast<int>(level));
      CHECK(wrong == 0);
    }
  }
}

// ---- index scores ----

namespace {

// Of one key: 32 products, then to the total of 128; heads in order; the key's scale last.
float PlainScore(const float* queries, const std::vector<float>& weights, const float* key,
                 float key_scale) {
  float score = 0.0F;
  for (std::size_t head = 0; head < weights.size(); ++head) {
    float dot = 0.0F;
    for (std::size_t first = 0; first < 128; first += 32) {
      float sum = 0.0F;
      for (std::size_t d = first; d < first + 32; ++d) {
        sum = std::fma(queries[head * 128 + d], key[d], sum);
      }
      dot += sum;
    }
    score = std::fma(weights[head], dot < 0.0F ? 0.0F : dot, score);
  }
  return score * key_scale;
}

}  // namespace

TEST_CASE("An index score's bits are those of its terms in order", "[kernels][indexer][order]") {
  const auto format = GENERATE(KvFormat::kFp8, KvFormat::kBf16, KvFormat::kF32);
  const auto heads = GENERATE(as<std::int64_t>(), 1, 5, 16);
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 2, 3, 4, 17);
  CAPTURE(testing::Name(format), heads, tokens);
  constexpr std::int64_t kContext = 150;  // two blocks and a part of one
  const testing::PagedLayout layout = testing::ShuffledBlocks(1, 3, 21);
  std::vector<std::uint8_t> cache = testing::EmptyIndexerKeys(format, layout.blocks);
  std::vector<float> keys;
  std::vector<float> key_scales;
  for (std::int64_t s = 0; s < kContext; ++s) {
    const std::int64_t slot = layout.Slot(0, s);
    testing::EncodeIndexerKey(format, cache, slot,
                              testing::RandomFloat(128, 1.0F, static_cast<std::uint32_t>(s)));
    float scale = 1.0F;
    if (format == KvFormat::kFp8) {
      const std::size_t block = static_cast<std::size_t>(slot / 64) * IndexerBlock::kBytes;
      std::memcpy(&scale, cache.data() + block + IndexerBlock::Scale(static_cast<int>(slot % 64)),
                  sizeof(scale));
    }
    key_scales.push_back(scale);
    for (const double value : testing::DecodeIndexerKey(format, cache, slot)) {
      keys.push_back(static_cast<float>(value / double{scale}));
    }
  }
  const DataType type = format == KvFormat::kFp8 ? DataType::kFp8E4m3 : DataType::kF32;
  const std::vector<float> queries =
      testing::RoundedTo(type, testing::RandomFloat(tokens * heads * 128, 4.0F, 22));
  const std::vector<float> weights = testing::RandomFloat(tokens * heads, 1.0F, 23);
  testing::RowList rows;
  for (std::int64_t row = 0; row < tokens; ++row) {
    rows.positions.push_back(static_cast<std::int32_t>(kContext - tokens + row));
    rows.sequences.push_back(0);
  }
  Backend& backend = testing::TestBackend();
  const testing::DeviceTensor device_queries(backend, type, testing::Dense(tokens, heads * 128),
                                             queries);
  const testing::DeviceArray<float> device_weights(backend, weights);
  const testing::DeviceRows device_rows(backend, rows, layout);
  const testing::DeviceArray<std::uint8_t> device_cache(backend, cache);
  const auto device_scores = testing::DeviceArray<float>::Poisoned(backend, tokens * kContext);
  backend.IndexerLogits(
      {.queries = device_queries.Heads(heads),
       .weights = device_weights.AsConstMatrix(tokens, heads),
       .cache = {.data = device_cache.data(), .blocks = layout.blocks, .format = format},
       .rows = device_rows.View(),
       .scores = device_scores.AsMatrix(tokens, kContext)});
  const std::vector<float> scores = device_scores.Download();
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < tokens; ++row) {
    const auto first = weights.begin() + row * heads;
    const std::vector<float> row_weights(first, first + heads);
    for (std::int64_t s = 0; s <= rows.positions[static_cast<std::size_t>(row)]; ++s) {
      const float expected =
          PlainScore(queries.data() + row * heads * 128, row_weights, keys.data() + s * 128,
                     key_scales[static_cast<std::size_t>(s)]);
      wrong += Same(scores[static_cast<std::size_t>(row * kContext + s)], expected) ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

// ---- the matrices of attention ----

namespace {

constexpr std::int64_t kMatrixRowsMax = 20;
constexpr std::int64_t kMatrixCols = 13;

struct Matrices {
  std::int64_t n;
  std::vector<float> a;  // [kMatrixRowsMax, n]
  std::vector<Bf16> narrow;
  std::vector<float> b;  // [kMatrixCols, n]  the values of `narrow`
};

Matrices MakeMatrices(std::int64_t n) {
  Matrices matrices = {.n = n,
                       .a = testing::RandomFloat(kMatrixRowsMax * n, 1.0F, 31),
                       .narrow = testing::RandomBf16(kMatrixCols * n, 1.0F, 32),
                       .b = {}};
  for (const Bf16 value : matrices.narrow) {
    matrices.b.push_back(ToFloat(value));
  }
  return matrices;
}

// Product k to lane k mod 8: 24 products a lane, then to the lane's total.
float PlainDot(const float* a, const float* b, std::int64_t n) {
  float total[8] = {};
  for (std::int64_t first = 0; first < n; first += 192) {
    float sum[8] = {};
    for (std::int64_t k = first; k < std::min(first + 192, n); ++k) {
      sum[k % 8] = std::fma(a[k], b[k], sum[k % 8]);
    }
    for (std::size_t lane = 0; lane < 8; ++lane) {
      total[lane] += sum[lane];
    }
  }
  return ((total[0] + total[4]) + (total[2] + total[6])) +
         ((total[1] + total[5]) + (total[3] + total[7]));
}

// Product k to lane k mod 4, of 16 products the last four first; (0 + 1) + (2 + 3).
float PlainEinsum(const float* a, const float* b, std::int64_t n) {
  float lanes[4] = {};
  for (std::int64_t first = 0; first < n; first += 16) {
    for (std::int64_t k = first + 12; k >= first; k -= 4) {
      for (std::int64_t lane = 0; lane < 4; ++lane) {
        lanes[lane] = std::fma(a[k + lane], b[k + lane], lanes[lane]);
      }
    }
  }
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

}  // namespace

TEST_CASE("The bits of scores, keys and values are those of their terms in order",
          "[kernels][attention][order]") {
  const auto rows = GENERATE(as<std::int64_t>(), 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 20);
  const auto cols = GENERATE(as<std::int64_t>(), 1, 2, 3, 8, 13);
  const auto n = GENERATE(as<std::int64_t>(), 16, 208, 576);
  CAPTURE(rows, cols, n);
  const Matrices m = MakeMatrices(n);
  const std::vector<double> wide(m.a.begin(), m.a.end());
  std::vector<std::int32_t> listed;
  for (std::int64_t j = 0; j < cols; ++j) {
    listed.push_back(static_cast<std::int32_t>((j * 5 + 2) % kMatrixCols));
  }
  const cpu::ListedRows index{listed.data()};
  const auto size = static_cast<std::size_t>(rows * cols);
  std::vector<double> scores(size);
  std::vector<float> dots(size);
  std::vector<float> einsum(size);
  cpu::ScoreMatrix({.rows = rows,
                    .columns = cols,
                    .n = n,
                    .a = wide.data(),
                    .a_stride = n,
                    .b = m.b.data(),
                    .b_stride = n,
                    .out = scores.data(),
                    .out_stride = cols},
                   0.37, index);
  cpu::ProductProblem<float, Bf16, float> problem = {.rows = rows,
                                                     .columns = cols,
                                                     .n = n,
                                                     .a = m.a.data(),
                                                     .a_stride = n,
                                                     .b = m.narrow.data(),
                                                     .b_stride = n,
                                                     .out = dots.data(),
                                                     .out_stride = cols};
  cpu::DotMatrix(problem);
  problem.out = einsum.data();
  cpu::EinsumMatrix(problem);
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      const auto at = static_cast<std::size_t>(i * cols + j);
      const float* const a = m.a.data() + i * n;
      const float* const b = m.b.data() + j * n;
      wrong += scores[at] == 0.37 * LaneSum(a, m.b.data() + index(j) * n, n) ? 0 : 1;
      wrong += Same(dots[at], PlainDot(a, b, n)) ? 0 : 1;
      wrong += Same(einsum[at], PlainEinsum(a, b, n)) ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("A weighted sum's bits are those of its terms in order", "[kernels][attention][order]") {
  const auto rows = GENERATE(as<std::int64_t>(), 1, 3, 4, 5, 8, 16);
  const auto terms = GENERATE(as<std::int64_t>(), 1, 63, 64, 65, 200);
  const auto width = GENERATE(as<std::int64_t>(), 8, 24, 128, 136, 512);
  CAPTURE(rows, terms, width);
  const std::vector<float> weights = testing::RandomFloat(rows * terms, 1.0F, 41);
  const std::vector<Bf16> narrow = testing::RandomBf16(terms * width, 1.0F, 42);
  std::vector<float> apart(static_cast<std::size_t>(rows * width), 0.25F);
  std::vector<float> chained = apart;
  cpu::WeightedSumProblem<Bf16> problem = {.rows = rows,
                                           .terms = terms,
                                           .width = width,
                                           .weights = weights.data(),
                                           .weight_stride = terms,
                                           .b = narrow.data(),
                                           .b_stride = width,
                                           .out = apart.data(),
                                           .out_stride = width};
  cpu::AddWeightedSum<cpu::Chunks::kApart>(problem, cpu::EveryRow{});
  problem.out = chained.data();
  cpu::AddWeightedSum<cpu::Chunks::kChained>(problem, cpu::EveryRow{});
  std::int64_t wrong = 0;
  for (std::int64_t at = 0; at < rows * width; ++at) {
    float total = 0.25F;
    float chain = 0.25F;
    float sum = 0.0F;
    for (std::int64_t j = 0; j < terms; ++j) {
      const float weight = weights[static_cast<std::size_t>(at / width * terms + j)];
      const float value = ToFloat(narrow[static_cast<std::size_t>(j * width + at % width)]);
      chain = std::fma(weight, value, chain);
      sum = std::fma(weight, value, sum);
      if (j % 64 == 63 || j + 1 == terms) {
        total += sum;
        sum = 0.0F;
      }
    }
    wrong += Same(apart[static_cast<std::size_t>(at)], total) ? 0 : 1;
    wrong += Same(chained[static_cast<std::size_t>(at)], chain) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

}  // namespace dsa::summation_order_test
