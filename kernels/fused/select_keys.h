// Which keys the rows of a layer attend to (DeepSeek-V3.2-Exp paper, section 2.1): queries are
// prepared, meet every visible indexer key, and the best K of each row are selected.
//
// The scores of all rows would take T * C * 4 bytes, so `scores` holds as many rows as it has and
// the rows are scored that many at a time, in whole groups.
#pragma once

#include "common/view.h"
#include "kernels/batch_view.h"
#include "kernels/fused/attend.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/rope.h"

#include <cstdint>
#include <optional>

namespace dsa {

struct SelectKeysParams {
  ConstAnyTensor3 q;            // [T, H, 128]  output of indexer.wq_b
  ConstAnyMatrix head_weights;  // [T, H]  f32, output of indexer.weights_proj
  RopeTable table;
  RopeLayout layout;
  IndexerCacheView cache;
  PagedRows rows;  // [T]
  // As in SelectTopK.
  std::int64_t k;
  Matrix<std::int32_t> slots;   // [T, K]; data may be null
  Matrix<std::uint64_t> mask;   // [T, W]; data may be null
  Vector<std::int32_t> counts;  // [T]
  Vector<std::int32_t> faults;  // [T]
  // Work memory.
  AnyTensor3 queries;     // [T, H, 128]  kFp8E4m3 for an fp8 cache, else the type of q
  Matrix<float> weights;  // [T, H]
  Matrix<float> scores;   // [S, C]  S >= rows.group; every row sees at most C keys
  // Of AttendLatent, for the same rows: done as well.
  std::optional<QueriesToAbsorb> absorbed = std::nullopt;
};

}  // namespace dsa
