// What the tests of StoreLatent and StoreIndexerKey share: rows, one way to run either op, and the
// laws of both.
#pragma once

#include "tests/kernels/paged_cache.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dsa::testing {

inline constexpr std::int64_t kWriterBlocks = 4;
inline constexpr float kWriterEps = 1e-6F;

// Rows to write.  Slots at both ends of blocks, in no order.
struct WriterInput {
  DataType type;
  KvFormat format;
  RopeLayout layout;
  std::vector<float> values;  // [T, width of the writer]
  std::vector<float> norm_weight;
  std::vector<float> norm_bias;  // empty where the writer has none
  std::vector<std::int32_t> positions = {0, 63, 64, 65, 1000, 163839, 7};
  std::vector<std::int64_t> slots = {3 * 64 + 63, 0, 2 * 64, 63, 64, 127, 3 * 64};
};

// A WriterInput in device memory, and the region it is written to.
struct WriterCall {
  ConstAnyMatrix rows;
  Vector<const float> norm_weight;
  Vector<const float> norm_bias;
  Vector<const std::int32_t> positions;
  RopeTable table;
  RopeLayout layout;
  Vector<const std::int64_t> slots;
  std::uint8_t* cache;
  KvFormat format;

  // What the parameters of both ops have.
  template <typename Params>
  Params CommonParams() const {
    Params params{};
    params.norm_weight = norm_weight;
    params.eps = kWriterEps;
    params.positions = positions;
    params.table = table;
    params.layout = layout;
    params.slots = slots;
    params.cache = {.data = cache, .blocks = kWriterBlocks, .format = format};
    return params;
  }
};

// One of the ops and its region of the cache.
struct CacheWriter {
  std::int64_t width;
  void (*store)(Backend& backend, const WriterCall& call);
  // What a slot holds after `row` was written to it.
  std::vector<double> (*expected)(const WriterInput& input, std::size_t row);
  std::vector<std::uint8_t> (*empty)(KvFormat format, std::int64_t blocks);
  std::vector<std::size_t> (*bytes_of)(KvFormat format, std::int64_t slot);
  std::vector<double> (*decode)(KvFormat format, const std::vector<std::uint8_t>& region,
                                std::int64_t slot);
};

// The region after one call.
inline std::vector<std::uint8_t> RunWriter(const CacheWriter& writer, Backend& backend,
                                           const WriterInput& input) {
  const auto tokens = static_cast<std::int64_t>(input.positions.size());
  const DeviceTensor rows(backend, input.type,
                          {.rows = tokens, .cols = writer.width, .row_stride = writer.width + 8},
                          input.values);
  const DeviceArray<float> weight(backend, input.norm_weight);
  const DeviceArray<float> bias(backend, input.norm_bias);
  const DeviceArray<std::int32_t> positions(backend, input.positions);
  const DeviceArray<std::int64_t> slots(backend, input.slots);
  const RopeTables tables(backend, 32, input.positions);
  const DeviceArray<std::uint8_t> cache(backend, writer.empty(input.format, kWriterBlocks));
  writer.store(backend, {.rows = rows.View(),
                         .norm_weight = weight.AsConstVector(),
                         .norm_bias = bias.AsConstVector(),
                         .positions = positions.AsConstVector(),
                         .table = tables.View(),
                         .layout = input.layout,
                         .slots = slots.AsConstVector(),
                         .cache = cache.data(),
                         .format = input.format});
  return cache.Download();
}

// All rows' slots, one after the other.
struct WrittenSlots {
  std::vector<double> actual;
  std::vector<double> expected;

  double RelativeError() const {
    return testing::RelativeError(std::vector<float>(actual.begin(), actual.end()), expected);
  }
};

// Writes the rows and reads them back; fails the test where a byte beside their slots changed.
inline WrittenSlots WriteRows(const CacheWriter& writer, const WriterInput& input) {
  std::vector<std::uint8_t> cache = RunWriter(writer, TestBackend(), input);
  WrittenSlots written;
  for (std::size_t row = 0; row < input.positions.size(); ++row) {
    const auto stored = writer.decode(input.format, cache, input.slots[row]);
    written.actual.insert(written.actual.end(), stored.begin(), stored.end());
    const auto wanted = writer.expected(input, row);
    written.expected.insert(written.expected.end(), wanted.begin(), wanted.end());
    for (const std::size_t offset : writer.bytes_of(input.format, input.slots[row])) {
      cache[offset] = 0xFF;
    }
  }
  CHECK(cache == writer.empty(input.format, kWriterBlocks));
  return written;
}

inline WriterInput OnlyRow(const CacheWriter& writer, const WriterInput& input, std::size_t row) {
  WriterInput single = input;
  const auto begin = input.values.begin() + static_cast<std::ptrdiff_t>(row) * writer.width;
  single.values.assign(begin, begin + writer.width);
  single.positions = {input.positions[row]};
  single.slots = {input.slots[row]};
  return single;
}

inline void CheckRowsAreIndependent(const CacheWriter& writer, const WriterInput& input) {
  const std::vector<std::uint8_t> together = RunWriter(writer, TestBackend(), input);
  for (Backend* backend : BackendVariants()) {
    CHECK(RunWriter(writer, *backend, input) == together);
  }
  for (std::size_t row = 0; row < input.positions.size(); ++row) {
    const auto alone = RunWriter(writer, TestBackend(), OnlyRow(writer, input, row));
    for (const std::size_t offset : writer.bytes_of(input.format, input.slots[row])) {
      REQUIRE(alone[offset] == together[offset]);
    }
  }
}

inline void CheckTakesNoRows(const CacheWriter& writer, WriterInput input) {
  input.positions.clear();
  input.slots.clear();
  input.values.clear();
  CHECK(RunWriter(writer, TestBackend(), input) == writer.empty(input.format, kWriterBlocks));
}

}  // namespace dsa::testing
