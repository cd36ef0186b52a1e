// Changes of the block tables that stay on the device from step to step:
//
//   tables[row, first + i] = blocks[source + i]   for i < count, of every update
//
// Updates of one call change different entries.  An update with a count of 0 changes nothing.
#pragma once

#include "common/view.h"

#include <cstdint>

namespace dsa {

struct TableUpdate {
  std::int32_t row;
  std::int32_t first;
  std::int32_t count;
  std::int32_t source;
};

struct UpdateBlockTablesParams {
  Vector<const TableUpdate> updates;  // [U]
  Vector<const std::int32_t> blocks;  // ids, wherever the updates say
  Matrix<std::int32_t> tables;        // [S, B]
};
struct UpdateBlockTablesExtents {
  std::int64_t updates;  // U, may be 0
};
UpdateBlockTablesExtents Validate(const UpdateBlockTablesParams& params);

}  // namespace dsa
