// The lightning indexer's scores (DeepSeek-V3.2-Exp paper, section 2.1, eq. 1):
//
//   score(t, s) = k_scale[s] * sum_h weight[t, h] * max(q[t, h] . k[s], 0)
//
// k_scale is the scale of a key of the fp8 format, else 1.  Float32.  A score is written for every
// key a row sees: scores[t, s] is written for s <= positions[t] and left alone beyond.  A row's
// scores do not depend on the other rows.  On CUDA the products of the fp8 format keep about 14
// bits (docs/numerics.md).
#pragma once

#include "common/view.h"
#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"

#include <cstdint>

namespace dsa {

struct IndexerLogitsParams {
  ConstAnyTensor3 queries;      // [T, H, 128]  kFp8E4m3, f32 or bf16, matching the cache's format
  Matrix<const float> weights;  // [T, H]
  IndexerCacheView cache;
  PagedRows rows;        // [T]
  Matrix<float> scores;  // [T, C]  C > the largest position
};
struct IndexerLogitsExtents {
  std::int64_t tokens;  // T, may be 0
  std::int64_t heads;   // H
};
IndexerLogitsExtents Validate(const IndexerLogitsParams& params);

}  // namespace dsa
