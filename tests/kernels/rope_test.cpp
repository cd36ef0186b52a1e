// RoPE against a double-precision restatement: both layouts, on whole tensors and on the last
// columns of every head, at positions up to the longest context.
#include "tests/kernels/paged_cache.h"

#include <cmath>

namespace dsa::rope_test {
namespace {

const std::vector<std::int32_t> kPositions = {0, 1, 63, 64, 4095, 163839, 2};

// x [T, H, width]: rotates the last `rotated` columns of each head; the result [T * H * width].
struct Input {
  DataType type;
  std::int64_t heads;
  std::int64_t width;
  std::int64_t rotated;
  RopeLayout layout;
  std::vector<std::int32_t> positions;
  std::vector<float> x;
};

std::vector<float> Run(Backend& backend, const Input& input) {
  const auto tokens = static_cast<std::int64_t>(input.positions.size());
  const testing::DeviceTensor x(backend, input.type,
                                testing::Dense(tokens, input.heads * input.width), input.x);
  const testing::DeviceArray<std::int32_t> positions(backend, input.positions);
  const testing::RopeTables tables(backend, input.rotated / 2, input.positions);
  AnyTensor3 view = x.Heads(input.heads);
  view.data =
      static_cast<std::uint8_t*>(view.data) + (input.width - input.rotated) * SizeOf(input.type);
  view.cols = input.rotated;
  backend.Rope({.x = view,
                .positions = positions.AsConstVector(),
                .table = tables.View(),
                .layout = input.layout});
  return x.Download();
}

Input MakeInput(DataType type, RopeLayout layout, std::int64_t heads, std::int64_t width) {
  Input input = {.type = type,
                 .heads = heads,
                 .width = width,
                 .rotated = 64,
                 .layout = layout,
                 .positions = kPositions,
                 .x = {}};
  const auto tokens = static_cast<std::int64_t>(kPositions.size());
  input.x = testing::RoundedTo(type, testing::RandomFloat(tokens * heads * width, 1.0F, 11));
  return input;
}

}  // namespace

TEST_CASE("Rope matches its equation", "[kernels][rope]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto layout = GENERATE(RopeLayout::kInterleaved, RopeLayout::kHalfSplit);
  const auto heads = GENERATE(as<std::int64_t>(), 1, 5);
  const auto width = GENERATE(as<std::int64_t>(), 64, 192);
  CAPTURE(testing::Name(type), static_cast<int>(layout), heads, width);
  const Input input = MakeInput(type, layout, heads, width);

  const std::vector<float> actual = Run(testing::TestBackend(), input);

  std::vector<double> expected(input.x.begin(), input.x.end());
  for (std::size_t head = 0; head < expected.size() / static_cast<std::size_t>(width); ++head) {
    const std::size_t end = (head + 1) * static_cast<std::size_t>(width);
    testing::RotateExpected(std::span(expected).subspan(end - 64, 64),
                            kPositions[head / static_cast<std::size_t>(heads)], layout);
  }
  // Bits of the columns that are not rotated stay; a wrong pair anywhere is an error of order 1.
  CHECK(testing::RelativeError(actual, testing::Rounded(type, expected)) <
        (type == DataType::kF32 ? 2e-7 : 2e-4));
}

TEST_CASE("Rope pairs values as its layout says", "[kernels][rope]") {
  // A quarter turn of the first pair; the second stands still.
  const testing::DeviceArray<float> cosines(std::vector<float>{1, 1, 0, 1});
  const testing::DeviceArray<float> sines(std::vector<float>{0, 0, 1, 0});
  const testing::DeviceArray<std::int32_t> positions(std::vector<std::int32_t>{1});
  const RopeTable table = {.cos = cosines.AsConstMatrix(2, 2), .sin = sines.AsConstMatrix(2, 2)};
  const std::vector<float> x = {1, 2, 3, 4};

  const testing::DeviceTensor interleaved(DataType::kF32, testing::Dense(1, 4), x);
  testing::TestBackend().Rope({.x = interleaved.Heads(1),
                               .positions = positions.AsConstVector(),
                               .table = table,
                               .layout = RopeLayout::kInterleaved});
  CHECK(interleaved.Download() == std::vector<float>{-2, 1, 3, 4});

  const testing::DeviceTensor half_split(DataType::kF32, testing::Dense(1, 4), x);
  testing::TestBackend().Rope({.x = half_split.Heads(1),
                               .positions = positions.AsConstVector(),
                               .table = table,
                               .layout = RopeLayout::kHalfSplit});
  CHECK(half_split.Download() == std::vector<float>{-3, 2, 1, 4});
}

TEST_CASE("Rope takes no rows", "[kernels][rope]") {
  Input input = MakeInput(DataType::kF32, RopeLayout::kHalfSplit, 2, 64);
  input.positions.clear();
  input.x.clear();
  CHECK(Run(testing::TestBackend(), input).empty());
}

TEST_CASE("Rope of a row depends on that row alone", "[kernels][rope]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const Input input = MakeInput(type, RopeLayout::kInterleaved, 3, 64);
  const std::vector<float> together = Run(testing::TestBackend(), input);
  for (Backend* backend : testing::BackendVariants()) {
    CHECK(Run(*backend, input) == together);
  }
  for (std::size_t row = 0; row < kPositions.size(); ++row) {
    Input single = input;
    const auto begin = static_cast<std::ptrdiff_t>(row * 192);
    single.positions = {kPositions[row]};
    single.x.assign(input.x.begin() + begin, input.x.begin() + begin + 192);
    const std::vector<float> alone = Run(testing::TestBackend(), single);
    CHECK(std::equal(alone.begin(), alone.end(), together.begin() + begin));
  }
}

}  // namespace dsa::rope_test
