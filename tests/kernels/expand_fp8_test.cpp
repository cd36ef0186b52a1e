// ExpandValue with fp8 weights against a double-precision restatement.
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "tests/kernels/reference.h"
#include "tests/kernels/test_backend.h"

#include <cmath>

namespace dsa::expand_fp8_test {
namespace {

constexpr std::int64_t kLatent = 512;

struct Input {
  std::int64_t tokens;
  std::int64_t heads;
  std::int64_t value;
  std::vector<float> x;               // [T, H, 512]
  testing::QuantizedMatrix w;         // [H * V, 512]
  std::int64_t row_stride = kLatent;  // of w
};

Input MakeInput(std::int64_t tokens, std::int64_t heads, std::int64_t value, ScaleFormat format) {
  return {.tokens = tokens,
          .heads = heads,
          .value = value,
          .x = testing::RoundedTo(DataType::kBf16,
                                  testing::RandomFloat(tokens * heads * kLatent, 1.0F, 63)),
          .w = testing::RandomFp8Weight(heads * value, kLatent, format, 64)};
}

std::vector<float> Run(Backend& backend, const Input& input) {
  const std::int64_t x_cols = input.heads * kLatent;
  const testing::DeviceTensor latents(
      backend, DataType::kBf16, {.rows = input.tokens, .cols = x_cols, .row_stride = x_cols + 8},
      input.x);
  const testing::DeviceTensor w(
      backend, DataType::kFp8E4m3,
      {.rows = input.heads * input.value, .cols = kLatent, .row_stride = input.row_stride},
      testing::ToFloats(input.w.values));
  const testing::DeviceTensor scales(backend, DataType::kF32,
                                     testing::Dense(input.w.scales.rows, input.w.scales.cols),
                                     testing::ToFloats(input.w.scales));
  const std::int64_t cols = input.heads * input.value;
  const auto o = testing::DeviceTensor::Poisoned(
      backend, DataType::kBf16, {.rows = input.tokens, .cols = cols, .row_stride = cols + 8});
  const AnyMatrix codes = w.View();
  const AnyMatrix of_codes = scales.View();
  backend.ExpandValue({.o_latent = latents.Heads(input.heads),
                       .w_uv = {.data = codes.data,
                                .type = codes.type,
                                .rows = input.heads,
                                .heads = input.value,
                                .cols = kLatent,
                                .row_stride = input.value * input.row_stride,
                                .head_stride = input.row_stride},
                       .o = o.Heads(input.heads),
                       .w_uv_scales = {.data = static_cast<const float*>(of_codes.data),
                                       .rows = of_codes.rows,
                                       .cols = of_codes.cols,
                                       .row_stride = of_codes.cols}});
  return o.Download();
}

// Each value on its own, whatever the others' size: of bfloat16, but for where float32 sums of
// terms of this size may round to the other side.
std::int64_t CountWrong(const Input& input, std::span<const float> actual) {
  const testing::DoubleMatrix w = testing::Dequantized(input.w, 128);
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < input.tokens * input.heads; ++row) {
    for (std::int64_t v = 0; v < input.value; ++v) {
      double expected = 0.0;
      double size = 0.0;
      for (std::int64_t l = 0; l < kLatent; ++l) {
        const double term = static_cast<double>(input.x[row * kLatent + l]) *
                            w.At(row % input.heads * input.value + v, l);
        expected += term;
        size += std::abs(term);
      }
      const double bound = std::abs(expected) / 256.0 * 1.002 + size * 1e-6;
      const double error = std::abs(actual[row * input.value + v] - expected);
      wrong += error <= bound ? 0 : 1;  // NaN is wrong
    }
  }
  return wrong;
}

Input RowsOf(const Input& input, std::int64_t first, std::int64_t count) {
  Input part = input;
  const std::int64_t row = input.heads * kLatent;
  part.tokens = count;
  part.x.assign(input.x.begin() + first * row, input.x.begin() + (first + count) * row);
  return part;
}

}  // namespace

TEST_CASE("ExpandValue of fp8 weights matches its equation", "[kernels][expand_value]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 0, 1, 8, 9, 16, 17, 32, 33, 64, 65, 130);
  const auto format = GENERATE(ScaleFormat::kPlain, ScaleFormat::kPowerOfTwo);
  const auto [heads, value] = GENERATE(std::pair<std::int64_t, std::int64_t>{1, 128},
                                       std::pair<std::int64_t, std::int64_t>{3, 256});
  CAPTURE(tokens, heads, value, static_cast<int>(format));
  Input input = MakeInput(tokens, heads, value, format);
  input.row_stride = tokens % 2 == 0 ? kLatent : kLatent + 16;
  const std::vector<float> actual = Run(testing::TestBackend(), input);
  CHECK(CountWrong(input, actual) == 0);
  for (Backend* backend : testing::BackendVariants()) {
    CHECK(Run(*backend, input) == actual);
  }
}

TEST_CASE("ExpandValue of fp8 weights takes scales and latents far from one",
          "[kernels][expand_value]") {
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 20, 40);
  const auto power = GENERATE(-100, -60, 0, 60, 90);  // of scales
  CAPTURE(tokens, power);
  Input input = MakeInput(tokens, 2, 128, ScaleFormat::kPlain);
  for (double& scale : input.w.scales.values) {
    scale = static_cast<float>(std::ldexp(scale, power));
  }
  for (float& x : input.x) {  // beyond the range of half
    x = std::ldexp(x, power > 0 ? -80 : 80);
  }
  CHECK(CountWrong(input, Run(testing::TestBackend(), input)) == 0);
}

TEST_CASE("ExpandValue of fp8 weights takes every code", "[kernels][expand_value]") {
  // A latent with one 1 reads a column.
  Input input = MakeInput(64, 1, 128, ScaleFormat::kPlain);
  for (std::int64_t row = 0; row < 128; ++row) {
    for (std::int64_t col = 0; col < kLatent; ++col) {
      const auto bits = static_cast<std::uint8_t>(row * 2 + col % 2);
      const float value = ToFloat(Fp8E4m3{bits});
      input.w.values.At(row, col) = std::isnan(value) ? 0.0 : value;
    }
  }
  const auto first = GENERATE(as<std::int64_t>(), 0, 64, 448);
  for (std::int64_t row = 0; row < 64; ++row) {
    for (std::int64_t col = 0; col < kLatent; ++col) {
      input.x[row * kLatent + col] = col == first + row ? 1.0F : 0.0F;
    }
  }
  CHECK(CountWrong(input, Run(testing::TestBackend(), input)) == 0);
}

TEST_CASE("ExpandValue of fp8 weights: a row depends on that row alone",
          "[kernels][expand_value]") {
  const Input input = MakeInput(65, 2, 128, ScaleFormat::kPlain);
  const std::vector<float> together = Run(testing::TestBackend(), input);
  const std::int64_t row = input.heads * input.value;
  for (const auto& [first, count] : {std::pair<std::int64_t, std::int64_t>{0, 1},
                                     {64, 1},
                                     {3, 8},
                                     {15, 16},
                                     {20, 32},
                                     {1, 64}}) {
    CAPTURE(first, count);
    const std::vector<float> alone = Run(testing::TestBackend(), RowsOf(input, first, count));
    CHECK(std::equal(alone.begin(), alone.end(), together.begin() + first * row));
  }
}

// Few heads, so that blocks that expand find multiprocessors free while others absorb.
TEST_CASE("ExpandValue of fp8 weights waits for the op that writes its latents",
          "[kernels][expand_value]") {
  constexpr std::int64_t kHeads = 16;
  constexpr std::int64_t kWidth = 128;
  const auto tokens = GENERATE(as<std::int64_t>(), 1, 20, 64);
  CAPTURE(tokens);
  Backend& backend = testing::TestBackend();
  const testing::DeviceTensor q(DataType::kBf16, testing::Dense(tokens, kHeads * kWidth),
                                testing::RandomFloat(tokens * kHeads * kWidth, 1.0F, 67));
  const testing::DeviceTensor w_uk(DataType::kBf16, testing::Dense(kHeads * kWidth, kLatent),
                                   testing::RandomFloat(kHeads * kWidth * kLatent, 0.1F, 68));
  const testing::QuantizedMatrix w =
      testing::RandomFp8Weight(kHeads * kWidth, kLatent, ScaleFormat::kPowerOfTwo, 69);
  const testing::DeviceTensor codes(DataType::kFp8E4m3, testing::Dense(kHeads * kWidth, kLatent),
                                    testing::ToFloats(w.values));
  const testing::DeviceTensor scales(DataType::kF32, testing::Dense(kHeads, 4),
                                     testing::ToFloats(w.scales));
  const auto heads_of = [](const testing::DeviceTensor& tensor) {
    return ConstAnyTensor3{.data = tensor.View().data,
                           .type = tensor.View().type,
                           .rows = kHeads,
                           .heads = kWidth,
                           .cols = kLatent,
                           .row_stride = kWidth * kLatent,
                           .head_stride = kLatent};
  };
  const auto run = [&](bool is_apart) {
    const auto latents =
        testing::DeviceTensor::Poisoned(DataType::kBf16, testing::Dense(tokens, kHeads * kLatent));
    const auto o =
        testing::DeviceTensor::Poisoned(DataType::kBf16, testing::Dense(tokens, kHeads * kWidth));
    backend.Synchronize();
    backend.AbsorbQuery(
        {.q_nope = q.Heads(kHeads), .w_uk = heads_of(w_uk), .q_latent = latents.Heads(kHeads)});
    if (is_apart) {
      backend.Synchronize();
    }
    backend.ExpandValue({.o_latent = latents.Heads(kHeads),
                         .w_uv = heads_of(codes),
                         .o = o.Heads(kHeads),
                         .w_uv_scales = {.data = static_cast<const float*>(scales.View().data),
                                         .rows = kHeads,
                                         .cols = 4,
                                         .row_stride = 4}});
    return o.DownloadBits();
  };
  const std::vector<std::uint8_t> apart = run(true);
  for (int i = 0; i < 8; ++i) {
    CHECK(run(false) == apart);
  }
}

}  // namespace dsa::expand_fp8_test
