// Reading and writing cached keys as numbers, in every format.
#pragma once

#include "common/view.h"
#include "kernels/kv_layout.h"

#include <cstdint>
#include <vector>

namespace dsa::testing {

struct CachedLatent {
  std::vector<float> values;  // [512]
  std::vector<float> rope;    // [64]
};
CachedLatent ReadLatent(const LatentCacheView& cache, std::int64_t slot);
std::vector<float> ReadIndexerKey(const IndexerCacheView& cache, std::int64_t slot);  // [128]

// Values that the format can hold exactly.
void WriteLatent(const LatentCacheView& cache, std::int64_t slot, const float* values,
                 const float* rope);
void WriteIndexerKey(const IndexerCacheView& cache, std::int64_t slot, const float* values);

// One head of one row of the indexer's queries; fp8 codes are read without their scale.
std::vector<float> ReadQuery(const AnyTensor3& queries, std::int64_t row, std::int64_t head);
// Returns the scale that the values were divided by: 1 unless fp8.
float WriteQuery(const AnyTensor3& queries, std::int64_t row, std::int64_t head,
                 const float* values);

}  // namespace dsa::testing
