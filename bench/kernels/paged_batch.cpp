#include "bench/kernels/paged_batch.h"

#include "common/check.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/key_selection.h"
#include "kernels/ops/rope.h"
#include "kernels/ops/store_indexer_key.h"
#include "kernels/ops/store_latent.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

namespace dsa::bench {
namespace {

constexpr std::int64_t kStoredAtOnce = 512;

DeviceBuffer Reserve(Backend& backend, std::int64_t bytes) {
  auto buffer = backend.Allocate(static_cast<std::size_t>(bytes));
  DSA_CHECK(buffer.ok(), "PagedBatch: no memory for {} bytes", bytes);
  return std::move(buffer).value();
}

template <typename T>
DeviceBuffer UploadValues(Backend& backend, const std::vector<T>& values) {
  return Upload(backend, values.data(), values.size() * sizeof(T));
}

}  // namespace

DeviceBuffer Upload(Backend& backend, const void* values, std::size_t bytes) {
  DeviceBuffer buffer = Reserve(backend, static_cast<std::int64_t>(bytes));
  backend.CopyToDevice(buffer.data(), values, bytes);
  return buffer;
}

PagedBatch::PagedBatch(Backend& backend, KvFormat format, std::int64_t context, std::int64_t rows)
    : backend_(backend),
      format_(format),
      context_(context),
      rows_(rows),
      blocks_((context + kTokensPerBlock - 1) / kTokensPerBlock),
      cos_(RandomMatrix(backend, DataType::kF32, context, kLatentRopeValues / 2)),
      sin_(RandomMatrix(backend, DataType::kF32, context, kLatentRopeValues / 2)),
      latents_(Reserve(backend, blocks_ * kTokensPerBlock * LatentTokenBytes(format))),
      indexer_keys_(Reserve(backend, blocks_ * kTokensPerBlock * IndexerTokenBytes(format))) {
  std::vector<std::int32_t> positions(static_cast<std::size_t>(rows));
  std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(context - rows));
  std::vector<std::int32_t> table(static_cast<std::size_t>(blocks_));
  std::iota(table.rbegin(), table.rend(), 0);
  positions_ = UploadValues(backend, positions);
  sequences_ = UploadValues(backend, std::vector<std::int32_t>(positions.size(), 0));
  tables_ = UploadValues(backend, table);
  FillCaches();
}

void PagedBatch::FillCaches() {
  const DeviceMatrix kv = RandomMatrix(backend_, DataType::kF32, kStoredAtOnce, 576);
  const DeviceMatrix k = RandomMatrix(backend_, DataType::kF32, kStoredAtOnce, kIndexerValues);
  const DeviceBuffer ones = UploadValues(backend_, std::vector<float>(kLatentValues, 1.0F));
  for (std::int64_t first = 0; first < context_; first += kStoredAtOnce) {
    const std::int64_t count = std::min(kStoredAtOnce, context_ - first);
    std::vector<std::int32_t> positions(static_cast<std::size_t>(count));
    std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(first));
    std::vector<std::int64_t> slots;
    for (const std::int64_t position : positions) {
      const std::int64_t block = blocks_ - 1 - position / kTokensPerBlock;
      slots.push_back(block * kTokensPerBlock + position % kTokensPerBlock);
    }
    const DeviceBuffer device_positions = UploadValues(backend_, positions);
    const DeviceBuffer device_slots = UploadValues(backend_, slots);
    ConstAnyMatrix latent_rows = kv.view;
    latent_rows.rows = count;
    ConstAnyMatrix key_rows = k.view;
    key_rows.rows = count;
    backend_.StoreLatent(
        {.kv = latent_rows,
         .norm_weight = {.data = ones.As<const float>(), .size = kLatentValues},
         .eps = 1e-6F,
         .positions = {.data = device_positions.As<const std::int32_t>(), .size = count},
         .table = Table(),
         .layout = RopeLayout::kInterleaved,
         .slots = {.data = device_slots.As<const std::int64_t>(), .size = count},
         .cache = Latents()});
    backend_.StoreIndexerKey(
        {.k = key_rows,
         .norm_weight = {.data = ones.As<const float>(), .size = kIndexerValues},
         .norm_bias = {.data = ones.As<const float>(), .size = kIndexerValues},
         .eps = 1e-6F,
         .positions = {.data = device_positions.As<const std::int32_t>(), .size = count},
         .table = Table(),
         .layout = RopeLayout::kHalfSplit,
         .slots = {.data = device_slots.As<const std::int64_t>(), .size = count},
         .cache = IndexerKeys()});
    backend_.Synchronize();
  }
}

double PagedBatch::KeysSeen(std::int64_t limit) const {
  double keys = 0.0;
  for (std::int64_t row = 0; row < rows_; ++row) {
    keys += static_cast<double>(std::min(limit, context_ - rows_ + row + 1));
  }
  return keys;
}

Vector<const std::int32_t> PagedBatch::Positions() const {
  return {.data = positions_.As<const std::int32_t>(), .size = rows_};
}

PagedRows PagedBatch::View() const {
  return {.positions = Positions(),
          .sequences = {.data = sequences_.As<const std::int32_t>(), .size = rows_},
          .block_tables = {.data = tables_.As<const std::int32_t>(),
                           .rows = 1,
                           .cols = blocks_,
                           .row_stride = blocks_}};
}

LatentCacheView PagedBatch::Latents() const {
  return {.data = latents_.As<std::uint8_t>(), .blocks = blocks_, .format = format_};
}

IndexerCacheView PagedBatch::IndexerKeys() const {
  return {.data = indexer_keys_.As<std::uint8_t>(), .blocks = blocks_, .format = format_};
}

RopeTable PagedBatch::Table() const {
  const auto matrix = [](const DeviceMatrix& table) {
    return Matrix<const float>{.data = table.buffer.As<const float>(),
                               .rows = table.view.rows,
                               .cols = table.view.cols,
                               .row_stride = table.view.row_stride};
  };
  return {.cos = matrix(cos_), .sin = matrix(sin_)};
}

KeySelection PagedBatch::Select(std::int64_t k) {
  std::vector<std::int32_t> slots;
  std::vector<std::uint64_t> mask(static_cast<std::size_t>(rows_ * blocks_), 0);
  for (std::int64_t row = 0; row < rows_; ++row) {
    const std::int64_t visible = context_ - rows_ + row + 1;
    DSA_CHECK(visible >= k, "PagedBatch: row {} sees {} keys, {} to select", row, visible, k);
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t position = j * visible / k;
      slots.push_back(
          static_cast<std::int32_t>((blocks_ - 1 - position / kTokensPerBlock) * kTokensPerBlock +
                                    position % kTokensPerBlock));
      mask[static_cast<std::size_t>(row * blocks_ + position / 64)] |= std::uint64_t{1}
                                                                       << (position % 64);
    }
  }
  selected_ = UploadValues(backend_, slots);
  mask_ = UploadValues(backend_, mask);
  counts_ = UploadValues(backend_, std::vector<std::int32_t>(static_cast<std::size_t>(rows_),
                                                             static_cast<std::int32_t>(k)));
  return {.slots = {.data = selected_.As<const std::int32_t>(),
                    .rows = rows_,
                    .cols = k,
                    .row_stride = k},
          .counts = {.data = counts_.As<const std::int32_t>(), .size = rows_},
          .mask = {.data = mask_.As<const std::uint64_t>(),
                   .rows = rows_,
                   .cols = blocks_,
                   .row_stride = blocks_},
          .positions = {}};
}

}  // namespace dsa::bench
