// Which projections may be read as one: those whose values and scales lie one behind the other.
#include "kernels/fused/joined.h"

#include <vector>

#include <catch2/catch.hpp>

namespace dsa::joined_test {
namespace {

constexpr std::int64_t kCols = 256;
constexpr std::int64_t kScaleCols = 2;

// Memory that weights are cut from, one behind the other; nothing is read.
class Memory final {
 public:
  LinearWeight Fp8(std::int64_t rows) {
    const LinearWeight weight = {.weight = {.data = values_.data() + values_used_,
                                            .type = DataType::kFp8E4m3,
                                            .rows = rows,
                                            .cols = kCols,
                                            .row_stride = kCols},
                                 .scales = {.data = scales_.data() + scales_used_,
                                            .rows = (rows + 127) / 128,
                                            .cols = kScaleCols,
                                            .row_stride = kScaleCols}};
    values_used_ += static_cast<std::size_t>(rows * kCols);
    scales_used_ += static_cast<std::size_t>(weight.scales.rows * kScaleCols);
    return weight;
  }
  LinearWeight Bf16(std::int64_t rows) {
    const LinearWeight weight = {.weight = {.data = values_.data() + values_used_,
                                            .type = DataType::kBf16,
                                            .rows = rows,
                                            .cols = kCols,
                                            .row_stride = kCols},
                                 .scales = {}};
    values_used_ += static_cast<std::size_t>(2 * rows * kCols);
    return weight;
  }
  void SkipValues(std::size_t bytes) { values_used_ += bytes; }
  void SkipScale() { ++scales_used_; }

 private:
  std::vector<std::uint8_t> values_ = std::vector<std::uint8_t>(1 << 20);
  std::vector<float> scales_ = std::vector<float>(256);
  std::size_t values_used_ = 0;
  std::size_t scales_used_ = 0;
};

// Columns [first, first + cols) of [3, 1024] outputs.
AnyMatrix Columns(std::vector<float>& memory, std::int64_t first, std::int64_t cols) {
  memory.resize(3 * 1024);
  return {.data = memory.data() + first,
          .type = DataType::kF32,
          .rows = 3,
          .cols = cols,
          .row_stride = 1024};
}

}  // namespace

TEST_CASE("weights one behind the other are one weight", "[kernels][fused]") {
  Memory memory;
  const LinearWeight q_a = memory.Fp8(256);
  const LinearWeight key = memory.Fp8(128);
  const LinearWeight kv_a = memory.Fp8(72);  // the last may end inside a block
  const LinearWeight other = memory.Bf16(8);
  const JoinedProjections joined =
      Joined({.x = {}, .projections = {{{q_a, {}}, {key, {}}, {kv_a, {}}, {other, {}}}}});
  REQUIRE(joined.count == 2);
  const JoinedProjection& first = joined.parts[0];
  REQUIRE(first.count == 3);
  CHECK(first.members[0] == 0);
  CHECK(first.members[1] == 1);
  CHECK(first.members[2] == 2);
  CHECK(first.weight.weight.data == q_a.weight.data);
  CHECK(first.weight.weight.rows == 256 + 128 + 72);
  CHECK(first.weight.weight.cols == kCols);
  CHECK(first.weight.scales.data == q_a.scales.data);
  CHECK(first.weight.scales.rows == 4);
  CHECK(joined.parts[1].count == 1);
  CHECK(joined.parts[1].members[0] == 3);
  CHECK(joined.parts[1].weight.weight.rows == 8);
}

TEST_CASE("an unused projection between two does not part them", "[kernels][fused]") {
  Memory memory;
  const LinearWeight a = memory.Bf16(3);  // without scales any number of rows will do
  const LinearWeight b = memory.Bf16(5);
  const JoinedProjections joined = Joined({.x = {}, .projections = {{{}, {a, {}}, {}, {b, {}}}}});
  REQUIRE(joined.count == 1);
  CHECK(joined.parts[0].count == 2);
  CHECK(joined.parts[0].members[0] == 1);
  CHECK(joined.parts[0].members[1] == 3);
  CHECK(joined.parts[0].weight.weight.rows == 8);
  CHECK(joined.parts[0].weight.scales.data == nullptr);
  CHECK(Joined(ProjectParams{.x = {}, .projections = {}}).count == 0);
}

TEST_CASE("weights that are not one behind the other are not joined", "[kernels][fused]") {
  Memory memory;
  const LinearWeight first = memory.Fp8(128);
  SECTION("a gap between values") {
    memory.SkipValues(16);
  }
  SECTION("a gap between scales") {
    memory.SkipScale();
  }
  SECTION("another one between them") {
    (void)memory.Fp8(128);
  }
  const LinearWeight second = memory.Fp8(128);
  CHECK_FALSE(Joined(first, second));
  CHECK_FALSE(Joined(second, first));
}

TEST_CASE("a weight that ends inside a block of scales is the last", "[kernels][fused]") {
  Memory memory;
  const LinearWeight partial = memory.Fp8(64);
  CHECK_FALSE(Joined(partial, memory.Fp8(128)));
}

TEST_CASE("weights that differ in more than rows are not joined", "[kernels][fused]") {
  Memory memory;
  LinearWeight first = memory.Fp8(128);
  LinearWeight second = memory.Fp8(128);
  REQUIRE(Joined(first, second));
  SECTION("another type") {
    second.weight.type = DataType::kBf16;
  }
  SECTION("another width") {
    second.weight.cols = second.weight.row_stride = kCols / 2;
  }
  SECTION("strided values") {
    second.weight.row_stride = 2 * kCols;
  }
  SECTION("strided scales") {
    second.scales.row_stride = 2 * kScaleCols;
  }
  SECTION("nothing") {
    first.weight.data = nullptr;
  }
  CHECK_FALSE(Joined(first, second));
}

TEST_CASE("outputs are one where their columns lie side by side", "[kernels][fused]") {
  Memory memory;
  const LinearWeight a = memory.Fp8(128);
  const LinearWeight b = memory.Fp8(256);
  std::vector<float> outputs;
  const AnyMatrix left = Columns(outputs, 4, 128);
  const auto joined = [&](const AnyMatrix& right) {
    return Joined({.x = {}, .projections = {{{a, left}, {b, right}}}}).parts[0];
  };
  const JoinedProjection whole = joined(Columns(outputs, 4 + 128, 256));
  REQUIRE(whole.count == 2);
  CHECK(whole.y.data == left.data);
  CHECK(whole.y.cols == 128 + 256);
  CHECK(whole.y.row_stride == 1024);
  for (AnyMatrix apart : {Columns(outputs, 4 + 129, 256), Columns(outputs, 500, 256)}) {
    CHECK(joined(apart).count == 2);
    CHECK(joined(apart).y.data == nullptr);
  }
  AnyMatrix strided = Columns(outputs, 4 + 128, 256);
  strided.row_stride = 512;
  CHECK(joined(strided).y.data == nullptr);
  AnyMatrix narrow = left;
  narrow.row_stride = 300;  // the columns would reach into the next row
  strided.row_stride = 300;
  CHECK_FALSE(JoinedColumns(narrow, strided));
}

}  // namespace dsa::joined_test
