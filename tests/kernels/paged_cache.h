// Paged caches on the host, and the arithmetic of what they hold, for tests.  Restated from the
// documented layouts in plain numbers and in double, so that it shares nothing with the code under
// test.
#pragma once

#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/rope.h"
#include "tests/kernels/test_backend.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace dsa::testing {

std::string Name(KvFormat format);

// Block tables of sequences whose blocks lie scattered over a cache that has some blocks more.
struct PagedLayout {
  std::vector<std::int32_t> tables;  // [S * B]
  std::int64_t sequences;            // S
  std::int64_t blocks_each;          // B
  std::int64_t blocks;               // of the cache

  std::int64_t Slot(std::int64_t sequence, std::int64_t position) const {
    const std::int64_t block =
        tables[static_cast<std::size_t>(sequence * blocks_each + position / 64)];
    return block * 64 + position % 64;
  }
};
PagedLayout ShuffledBlocks(std::int64_t sequences, std::int64_t blocks_each, std::uint32_t seed);

// Which row stands where.
struct RowList {
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> sequences;
  std::int64_t group = 1;
  bool has_runs = false;

  std::int64_t size() const { return static_cast<std::int64_t>(positions.size()); }
  RowList Only(std::int64_t row) const {
    const auto i = static_cast<std::size_t>(row);
    return {.positions = {positions[i]}, .sequences = {sequences[i]}};
  }
};

// A RowList and its layout in device memory.
class DeviceRows final {
 public:
  DeviceRows(Backend& backend, const RowList& rows, const PagedLayout& layout)
      : positions_(backend, rows.positions),
        sequences_(backend, rows.sequences),
        tables_(backend, layout.tables),
        layout_(layout),
        group_(rows.group),
        has_runs_(rows.has_runs) {}

  PagedRows View() const {
    return {.positions = positions_.AsConstVector(),
            .sequences = sequences_.AsConstVector(),
            .block_tables = tables_.AsConstMatrix(layout_.sequences, layout_.blocks_each),
            .group = group_,
            .has_runs = has_runs_};
  }

 private:
  DeviceArray<std::int32_t> positions_;
  DeviceArray<std::int32_t> sequences_;
  DeviceArray<std::int32_t> tables_;
  PagedLayout layout_;
  std::int64_t group_;
  bool has_runs_;
};

// Bytes of a region; every byte 0xFF, which is NaN in each format.
std::vector<std::uint8_t> EmptyLatents(KvFormat format, std::int64_t blocks);
std::vector<std::uint8_t> EmptyIndexerKeys(KvFormat format, std::int64_t blocks);

// The bytes of the region that belong to a slot, as offsets.
std::vector<std::size_t> LatentBytesOf(KvFormat format, std::int64_t slot);
std::vector<std::size_t> IndexerBytesOf(KvFormat format, std::int64_t slot);

// What a slot holds, scales applied: 512 + 64 and 128 values.
std::vector<double> DecodeLatent(KvFormat format, const std::vector<std::uint8_t>& region,
                                 std::int64_t slot);
std::vector<double> DecodeIndexerKey(KvFormat format, const std::vector<std::uint8_t>& region,
                                     std::int64_t slot);

// Puts values into a slot as near as the format allows; the fp8 format with a power-of-two scale
// that differs between tokens and blocks of values.
void EncodeLatent(KvFormat format, std::vector<std::uint8_t>& region, std::int64_t slot,
                  std::span<const float> values);
void EncodeIndexerKey(KvFormat format, std::vector<std::uint8_t>& region, std::int64_t slot,
                      std::span<const float> values);

// e4m3 code to value and back, to nearest even, and the power-of-two scale of a block.
double DecodeE4m3(std::uint8_t code);
std::uint8_t EncodeE4m3(double value);
double PowerOfTwoScale(std::span<const double> block);
// A block as fp8 with that scale keeps it, the scale applied.
void RoundToScaledE4m3(std::span<double> block);

// `values` to the nearest that `type` can hold.
std::vector<double> Rounded(DataType type, std::span<const double> values);

// RoPE tables of which only the rows of `positions` are filled; the others are NaN.
class RopeTables final {
 public:
  RopeTables(Backend& backend, std::int64_t pairs, const std::vector<std::int32_t>& positions);
  RopeTable View() const;

 private:
  std::int64_t rows_;
  std::int64_t pairs_;
  DeviceArray<float> cos_;
  DeviceArray<float> sin_;
};
// Rotates 2 * pairs values with the same angles.
void RotateExpected(std::span<double> values, std::int64_t position, RopeLayout layout);
std::vector<double> HadamardExpected(std::span<const double> values);

// The share of values that are equal: 1 where rounding hides the order of sums, a little less where
// a value lies near the border of two roundings.
double EqualShare(std::span<const double> actual, std::span<const double> expected);

}  // namespace dsa::testing
