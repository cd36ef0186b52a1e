// AbsorbQuery and ExpandValue against double-precision restatements.
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "tests/kernels/paged_cache.h"

namespace dsa::latent_projection_test {
namespace {

struct Input {
  DataType type;  // of activations
  DataType weight_type;
  std::int64_t tokens;
  std::int64_t heads;
  std::int64_t width;    // N or V of a head
  std::vector<float> x;  // [T * H * N], [T * H * 512]
  std::vector<float> w;  // [H * width * 512]
};

Input MakeInput(std::int64_t tokens, std::int64_t x_cols) {
  Input input = {.type = GENERATE(DataType::kF32, DataType::kBf16),
                 .weight_type = GENERATE(DataType::kF32, DataType::kBf16),
                 .tokens = tokens,
                 .heads = GENERATE(as<std::int64_t>(), 1, 3, 8),
                 .width = GENERATE(as<std::int64_t>(), 6, 128),
                 .x = {},
                 .w = {}};
  x_cols = x_cols == 0 ? input.width : x_cols;
  input.x =
      testing::RoundedTo(input.type, testing::RandomFloat(tokens * input.heads * x_cols, 1.0F, 61));
  input.w = testing::RoundedTo(input.weight_type,
                               testing::RandomFloat(input.heads * input.width * 512, 0.1F, 62));
  return input;
}

ConstAnyTensor3 Weights(const testing::DeviceTensor& w, const Input& input) {
  const AnyMatrix view = w.View();  // [H * width, 512]
  return {.data = view.data,
          .type = view.type,
          .rows = input.heads,
          .heads = input.width,
          .cols = 512,
          .row_stride = input.width * view.row_stride,
          .head_stride = view.row_stride};
}

std::vector<float> RunAbsorb(Backend& backend, const Input& input) {
  const std::int64_t cols = input.heads * input.width;
  const testing::DeviceTensor q(
      backend, input.type, {.rows = input.tokens, .cols = cols, .row_stride = cols + 8}, input.x);
  const testing::DeviceTensor w(backend, input.weight_type,
                                {.rows = input.heads * input.width, .cols = 512, .row_stride = 520},
                                input.w);
  const auto q_latent = testing::DeviceTensor::Poisoned(
      backend, input.type,
      {.rows = input.tokens, .cols = input.heads * 512, .row_stride = input.heads * 512 + 8});
  backend.AbsorbQuery({.q_nope = q.Heads(input.heads),
                       .w_uk = Weights(w, input),
                       .q_latent = q_latent.Heads(input.heads)});
  return q_latent.Download();
}

std::vector<float> RunExpand(Backend& backend, const Input& input) {
  const testing::DeviceTensor latents(
      backend, input.type,
      {.rows = input.tokens, .cols = input.heads * 512, .row_stride = input.heads * 512 + 8},
      input.x);
  const testing::DeviceTensor w(backend, input.weight_type,
                                {.rows = input.heads * input.width, .cols = 512, .row_stride = 520},
                                input.w);
  const std::int64_t cols = input.heads * input.width;
  const auto o = testing::DeviceTensor::Poisoned(
      backend, input.type, {.rows = input.tokens, .cols = cols, .row_stride = cols + 8});
  backend.ExpandValue({.o_latent = latents.Heads(input.heads),
                       .w_uv = Weights(w, input),
                       .o = o.Heads(input.heads)});
  return o.Download();
}

// Bounds on outputs compared with rounded expectations: float32 sums, and for bf16 the rare value
// that lies near the border of two roundings.
double Bound(DataType type) {
  return type == DataType::kF32 ? 5e-7 : 3e-4;
}

// Every row alone and every backend give the bits of the whole batch.
template <typename Run>
void CheckRowsAlone(const Input& input, const Run& run) {
  const std::vector<float> together = run(testing::TestBackend(), input);
  for (Backend* backend : testing::BackendVariants()) {
    CHECK(run(*backend, input) == together);
  }
  const std::size_t x_row = input.x.size() / static_cast<std::size_t>(input.tokens);
  const std::size_t y_row = together.size() / static_cast<std::size_t>(input.tokens);
  for (std::size_t row = 0; row < static_cast<std::size_t>(input.tokens); ++row) {
    Input single = input;
    const auto x = input.x.begin() + static_cast<std::ptrdiff_t>(row * x_row);
    single.tokens = 1;
    single.x.assign(x, x + static_cast<std::ptrdiff_t>(x_row));
    const std::vector<float> alone = run(testing::TestBackend(), single);
    CHECK(std::equal(alone.begin(), alone.end(),
                     together.begin() + static_cast<std::ptrdiff_t>(row * y_row)));
  }
}

}  // namespace

TEST_CASE("AbsorbQuery matches its equation", "[kernels][absorb_query]") {
  const Input input = MakeInput(GENERATE(as<std::int64_t>(), 0, 1, 5, 19), 0);
  CAPTURE(testing::Name(input.type), testing::Name(input.weight_type), input.heads, input.width);
  const std::vector<float> actual = RunAbsorb(testing::TestBackend(), input);
  const auto heads = static_cast<std::size_t>(input.heads);
  const auto width = static_cast<std::size_t>(input.width);
  std::vector<double> expected(actual.size(), 0.0);
  for (std::size_t row = 0; row < static_cast<std::size_t>(input.tokens) * heads; ++row) {
    for (std::size_t n = 0; n < width; ++n) {
      for (std::size_t l = 0; l < 512; ++l) {
        expected[row * 512 + l] += static_cast<double>(input.x[row * width + n]) *
                                   input.w[(row % heads * width + n) * 512 + l];
      }
    }
  }
  CHECK(testing::RelativeError(actual, testing::Rounded(input.type, expected)) < Bound(input.type));
}

TEST_CASE("ExpandValue matches its equation", "[kernels][expand_value]") {
  const Input input = MakeInput(GENERATE(as<std::int64_t>(), 0, 1, 5, 19), 512);
  CAPTURE(testing::Name(input.type), testing::Name(input.weight_type), input.heads, input.width);
  const std::vector<float> actual = RunExpand(testing::TestBackend(), input);
  const auto heads = static_cast<std::size_t>(input.heads);
  const auto width = static_cast<std::size_t>(input.width);
  std::vector<double> expected(actual.size(), 0.0);
  for (std::size_t row = 0; row < static_cast<std::size_t>(input.tokens) * heads; ++row) {
    for (std::size_t v = 0; v < width; ++v) {
      for (std::size_t l = 0; l < 512; ++l) {
        expected[row * width + v] += static_cast<double>(input.x[row * 512 + l]) *
                                     input.w[(row % heads * width + v) * 512 + l];
      }
    }
  }
  CHECK(testing::RelativeError(actual, testing::Rounded(input.type, expected)) < Bound(input.type));
}

TEST_CASE("AbsorbQuery of a row depends on that row alone", "[kernels][absorb_query]") {
  CheckRowsAlone(MakeInput(19, 0), RunAbsorb);
}

TEST_CASE("ExpandValue of a row depends on that row alone", "[kernels][expand_value]") {
  CheckRowsAlone(MakeInput(19, 512), RunExpand);
}

}  // namespace dsa::latent_projection_test
