// UpdateBlockTables: what is named is written, and nothing else.
#include "kernels/ops/update_block_tables.h"

#include "tests/kernels/test_backend.h"

namespace dsa::update_block_tables_test {

TEST_CASE("UpdateBlockTables writes what its updates name", "[kernels][update_block_tables]") {
  constexpr std::int64_t kRows = 5;
  constexpr std::int64_t kColumns = 300;
  std::vector<std::int32_t> ids(400);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<std::int32_t>(1000 + 7 * i);
  }
  const std::vector<TableUpdate> updates = GENERATE(
      values<std::vector<TableUpdate>>({{},
                                        {{.row = 0, .first = 0, .count = 0, .source = 0}},
                                        {{.row = 4, .first = 299, .count = 1, .source = 399},
                                         {.row = 0, .first = 0, .count = 0, .source = 0},
                                         {.row = 1, .first = 0, .count = 300, .source = 17},
                                         {.row = 0, .first = 63, .count = 66, .source = 1}}}));
  CAPTURE(updates.size());
  std::vector<std::int32_t> expected(kRows * kColumns, -3);
  const testing::DeviceArray<std::int32_t> tables(expected);
  const testing::DeviceArray<std::int32_t> blocks(ids);
  const testing::DeviceArray<TableUpdate> device_updates(updates);
  testing::TestBackend().UpdateBlockTables(
      {.updates = device_updates.AsConstVector(),
       .blocks = blocks.AsConstVector(),
       .tables = {.data = tables.data(), .rows = kRows, .cols = kColumns, .row_stride = kColumns}});
  for (const TableUpdate& update : updates) {
    std::copy_n(ids.begin() + update.source, update.count,
                expected.begin() + update.row * kColumns + update.first);
  }
  CHECK(tables.Download() == expected);
}

}  // namespace dsa::update_block_tables_test
