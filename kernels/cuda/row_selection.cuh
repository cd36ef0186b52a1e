// What the kernels that select keys write of a row.
#pragma once

#include "kernels/cuda/element.cuh"
#include "kernels/kv_layout.h"
#include "kernels/ops/select_top_k.h"

#include <cstdint>

namespace dsa::cuda {

// The parts of a row's selection; those that are null are not written.
struct RowSelection {
  const std::int32_t* table;
  std::int32_t* slots;
  std::int32_t* positions;
  std::uint32_t* mask;
  int mask_words;  // of 32 bits; 0 without a mask

  __device__ RowSelection(const SelectTopKParams& p, std::int64_t row)
      : table(p.rows.block_tables.Row(p.rows.sequences.data[row])),
        slots(p.slots.data == nullptr ? nullptr : p.slots.Row(row)),
        positions(p.positions.data == nullptr ? nullptr : p.positions.Row(row)),
        mask(p.mask.data == nullptr ? nullptr : reinterpret_cast<std::uint32_t*>(p.mask.Row(row))),
        mask_words(p.mask.data == nullptr ? 0 : 2 * static_cast<int>(p.mask.cols)) {}

  // Into the lists; `block` is that of the position.
  __device__ void List(int place, int position, std::int32_t block) const {
    if (slots != nullptr) {
      slots[place] = block * kTokensPerBlock + position % kTokensPerBlock;
    }
    if (positions != nullptr) {
      positions[place] = position;
    }
  }
  __device__ void List(int place, int position) const {
    List(place, position, table[position / kTokensPerBlock]);
  }
  __device__ void LeaveOut(int place) const {
    if (slots != nullptr) {
      slots[place] = -1;
    }
    if (positions != nullptr) {
      positions[place] = -1;
    }
  }
  // The first `count` of k places, and their bits; by all threads of one block.
  template <int kThreads>
  __device__ void SelectFirst(int count, int k) const {
    for (int i = static_cast<int>(threadIdx.x); i < k; i += kThreads) {
      if (i < count) {
        List(i, i);
      } else {
        LeaveOut(i);
      }
    }
    for (int word = static_cast<int>(threadIdx.x); word < mask_words; word += kThreads) {
      const int bits = min(max(count - word * kWarpSize, 0), kWarpSize);
      mask[word] = bits == kWarpSize ? ~0U : (1U << bits) - 1U;
    }
  }
};

}  // namespace dsa::cuda
