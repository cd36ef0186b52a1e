// Embed and GatherRows: exact copies, or one conversion.
#include "kernels/ops/embed.h"

#include "kernels/ops/gather_rows.h"
#include "tests/kernels/test_backend.h"

namespace dsa::embed_test {

TEST_CASE("Embed looks rows up and converts them", "[kernels][embed]") {
  const auto table_type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto hidden = GENERATE(as<std::int64_t>(), 8, 13, 384, 7168);
  const std::vector<std::int32_t> ids =
      GENERATE(values<std::vector<std::int32_t>>({{}, {10}, {0, 10, 3, 3, 7, 0}}));
  const auto tokens = static_cast<std::int64_t>(ids.size());
  CAPTURE(testing::Name(table_type), testing::Name(type), hidden, tokens);
  const testing::TensorShape table_shape{.rows = 11, .cols = hidden, .row_stride = hidden + 8};
  const auto table = testing::RoundedTo(table_type, testing::RandomFloat(11 * hidden, 1.0F, 1));

  const testing::DeviceArray<std::int32_t> device_ids(ids);
  const testing::DeviceTensor device_table(table_type, table_shape, table);
  const auto x = testing::DeviceTensor::Poisoned(
      type, {.rows = tokens, .cols = hidden, .row_stride = hidden + 16});
  testing::TestBackend().Embed(
      {.ids = device_ids.AsConstVector(), .table = device_table.View(), .x = x.View()});

  std::vector<float> expected;
  for (const std::int32_t id : ids) {
    expected.insert(expected.end(), table.begin() + id * hidden, table.begin() + (id + 1) * hidden);
  }
  CHECK(x.Download() == testing::RoundedTo(type, expected));
}

TEST_CASE("GatherRows copies rows bit by bit", "[kernels][gather_rows]") {
  const auto type = GENERATE(DataType::kF32, DataType::kBf16);
  const auto hidden = GENERATE(as<std::int64_t>(), 8, 384, 7168);
  const std::vector<std::int32_t> rows =
      GENERATE(values<std::vector<std::int32_t>>({{}, {4}, {4, 0, 2, 2}}));
  const auto count = static_cast<std::int64_t>(rows.size());
  CAPTURE(testing::Name(type), hidden, count);
  auto x = testing::RoundedTo(type, testing::RandomFloat(5 * hidden, 1.0F, 1));
  x[static_cast<std::size_t>(2 * hidden)] = -0.0F;

  const testing::DeviceArray<std::int32_t> device_rows(rows);
  const testing::DeviceTensor device_x(type, {.rows = 5, .cols = hidden, .row_stride = hidden + 8},
                                       x);
  const auto y = testing::DeviceTensor::Poisoned(
      type, {.rows = count, .cols = hidden, .row_stride = hidden + 16});
  testing::TestBackend().GatherRows(
      {.x = device_x.View(), .rows = device_rows.AsConstVector(), .y = y.View()});

  std::vector<float> expected;
  for (const std::int32_t row : rows) {
    expected.insert(expected.end(), x.begin() + row * hidden, x.begin() + (row + 1) * hidden);
  }
  const testing::DeviceTensor wanted(type, testing::Dense(count, hidden), expected);
  CHECK(y.DownloadBits() == wanted.DownloadBits());
}

}  // namespace dsa::embed_test
