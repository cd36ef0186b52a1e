// Which keys a row attends to, and where they lie: shared by the attention kernels.
#pragma once

#include "kernels/batch_view.h"
#include "kernels/cuda/element.cuh"
#include "kernels/kv_layout.h"
#include "kernels/ops/key_selection.h"

#include <cstdint>

namespace dsa::cuda {

inline constexpr int kRecordValues = kLatentValues + kLatentRopeValues;

// The keys of one row, in ascending position.
struct RowKeys {
  const std::int32_t* table;  // blocks of the row's sequence, null of a selection
  const std::int32_t* slots;  // of the selection; null: every visible key
  int count;

  __device__ std::int64_t Slot(int key) const { return SlotFrom(*Word(key), key); }
  // The same in two steps, for whom a load is to be on its way meanwhile: the word that tells a
  // key's slot, and the slot that it tells.
  __device__ const std::int32_t* Word(int key) const {
    return slots != nullptr ? slots + key : table + key / kTokensPerBlock;
  }
  __device__ std::int64_t SlotFrom(std::int32_t word, int key) const {
    return slots != nullptr ? word : std::int64_t{word} * kTokensPerBlock + key % kTokensPerBlock;
  }
};

__device__ inline RowKeys KeysOf(const PagedRows& rows, const KeySelection& selection,
                                 std::int64_t row) {
  if (selection.slots.data != nullptr) {
    return {
        .table = nullptr, .slots = selection.slots.Row(row), .count = selection.counts.data[row]};
  }
  return {.table = rows.block_tables.Row(rows.sequences.data[row]),
          .slots = nullptr,
          .count = rows.positions.data[row] + 1};
}

// Value i of the record in a slot.
template <KvFormat kFormat>
__device__ float LatentValue(const std::uint8_t* cache, std::int64_t slot, int i) {
  const std::uint8_t* record = cache + slot * LatentTokenBytes(kFormat);
  if constexpr (kFormat == KvFormat::kF32) {
    return reinterpret_cast<const float*>(record)[i];
  } else if constexpr (kFormat == KvFormat::kBf16) {
    return ToFloat(reinterpret_cast<const __nv_bfloat16*>(record)[i]);
  } else {
    if (i >= kLatentValues) {
      return ToFloat(
          reinterpret_cast<const __nv_bfloat16*>(record + LatentBlock::Rope(0))[i - kLatentValues]);
    }
    return Fp8ToFloat(record[i]) *
           reinterpret_cast<const float*>(record + LatentBlock::Scales(0))[i / kValuesPerScale];
  }
}

// Calls body.operator()<kFormat>() with the cache's format.
template <typename Body>
void DispatchFormat(KvFormat format, const Body& body) {
  switch (format) {
    case KvFormat::kFp8: body.template operator()<KvFormat::kFp8>(); return;
    case KvFormat::kBf16: body.template operator()<KvFormat::kBf16>(); return;
    case KvFormat::kF32: body.template operator()<KvFormat::kF32>(); return;
  }
}

}  // namespace dsa::cuda
