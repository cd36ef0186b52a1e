// Reads and writes single records of the paged caches in their three formats.  Values pass as
// float32; what a format can't hold is rounded on the way in.
#pragma once

#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"

#include <cstdint>

namespace dsa::cpu {

inline constexpr int kLatentRecordValues = kLatentValues + kLatentRopeValues;

// The slot of `position` of the sequence of a row.  CHECK-fails, naming `op`, where the block table
// ends before it; that the slot lies in the cache is checked by what reads it.
std::int64_t SlotOf(const char* op, const PagedRows& rows, std::int64_t row, std::int64_t position);

// How many keys a row sees.  CHECK-fails, naming `op`, for a row before position 0.
std::int64_t VisibleKeys(const char* op, const PagedRows& rows, std::int64_t row);

// CHECK-fails, naming `op`, unless the rows of each group are of one sequence and follow each
// other, and no row sees more keys than visible_max.
void CheckGroups(const char* op, const PagedRows& rows);

// values: c [512], then k_r [64].  The fp8 format rounds k_r to bf16 and each 128 values of c to
// e4m3 with a power-of-two scale.
void WriteLatent(const LatentCacheView& cache, std::int64_t slot, const float* values);
void ReadLatent(const LatentCacheView& cache, std::int64_t slot, float* values);
// Asks for a record that will be read soon.
void PrefetchLatent(const LatentCacheView& cache, std::int64_t slot);

// values [128].  The fp8 format rounds them to e4m3 with one power-of-two scale.
void WriteIndexerKey(const IndexerCacheView& cache, std::int64_t slot, const float* values);
// The stored numbers without their scale, which is returned (1 in the formats that have none).
float ReadIndexerKey(const IndexerCacheView& cache, std::int64_t slot, float* values);

// codes[i] = e4m3(values[i] / scale) with the power-of-two scale of all `count` values, which is
// returned.  `values` and `codes` must not overlap.
float QuantizeBlock(const float* values, std::int64_t count, std::uint8_t* codes);

}  // namespace dsa::cpu
