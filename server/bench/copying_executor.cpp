#include "server/bench/copying_executor.h"

#include "common/check.h"
#include "common/prng.h"

#include <algorithm>
#include <cstring>
#include <span>

namespace dsa::bench {
namespace {

constexpr int kChangedValues = 8;  // of a copied key
constexpr std::int64_t kScaleBytes = 4;

// Other low mantissa bits of a few values, so that no two keys are equal.  e4m3's largest finite
// values are left alone: beside them lies NaN.
void MakeDistinct(std::uint8_t* values, int count, KvFormat format, std::uint64_t key) {
  const int bytes = format == KvFormat::kFp8 ? 1 : ElementBytes(format);
  for (int i = 0; i < kChangedValues; ++i) {
    const std::uint64_t place =
        CounterBits(key, static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(count);
    std::uint8_t& low = values[place * static_cast<std::uint64_t>(bytes)];
    const bool may_change = format != KvFormat::kFp8 || (low & 0x7F) < 0x7E;
    low ^= may_change ? 1 : 0;
  }
}

// Bytes of an indexer key's values; in fp8 its scale lies elsewhere in the block.
std::int64_t IndexerValueBytes(KvFormat format) {
  return format == KvFormat::kFp8 ? kIndexerValues : IndexerTokenBytes(format);
}

struct Place {
  std::int64_t block;
  std::int64_t token;
};
Place PlaceOf(std::int64_t slot) {
  return {.block = slot / kTokensPerBlock, .token = slot % kTokensPerBlock};
}

std::uint8_t* LatentRecord(const LatentCacheView& view, const Place& place) {
  return view.data + (place.block * kTokensPerBlock + place.token) * LatentTokenBytes(view.format);
}
std::uint8_t* IndexerBlockOf(const IndexerCacheView& view, const Place& place) {
  return view.data + place.block * kTokensPerBlock * IndexerTokenBytes(view.format);
}

}  // namespace

void CopyingExecutor::Launch(const ForwardBatch& batch) {
  copied_ = mode_ == Mode::kCopy;
  if (copied_) {
    Copy(batch);
    model_.ApplyTableUpdates(batch);
    blank_.Reset(batch.shape);
    return;
  }
  if (records_source_) {
    source_slots_.insert(source_slots_.end(), batch.slots.begin(), batch.slots.end());
  }
  model_.Launch(batch);
}

const StepResult& CopyingExecutor::Collect() {
  return copied_ ? blank_.result() : model_.Collect();
}

void CopyingExecutor::BeginSource() {
  records_source_ = true;
  source_slots_.clear();
}

void CopyingExecutor::EndSource() {
  records_source_ = false;
  const KvArenaExtents& extents = model_.arena().extents();
  const std::int64_t latent_bytes = LatentTokenBytes(extents.format);
  const std::int64_t indexer_bytes = IndexerTokenBytes(extents.format);
  const std::int64_t value_bytes = IndexerValueBytes(extents.format);
  const std::size_t rows = source_slots_.size();
  latent_source_.assign(static_cast<std::size_t>(extents.layers), {});
  indexer_source_.assign(static_cast<std::size_t>(extents.indexer_layers), {});
  for (int layer = 0; layer < extents.layers; ++layer) {
    auto& latent = latent_source_[static_cast<std::size_t>(layer)];
    latent.resize(rows * static_cast<std::size_t>(latent_bytes));
    for (std::size_t i = 0; i < rows; ++i) {
      backend_.CopyToHost(latent.data() + i * static_cast<std::size_t>(latent_bytes),
                          LatentRecord(model_.arena().Latent(layer), PlaceOf(source_slots_[i])),
                          static_cast<std::size_t>(latent_bytes));
    }
  }
  for (int layer = 0; layer < extents.indexer_layers; ++layer) {
    auto& indexer = indexer_source_[static_cast<std::size_t>(layer)];
    indexer.resize(rows * static_cast<std::size_t>(indexer_bytes));
    for (std::size_t i = 0; i < rows; ++i) {
      const Place place = PlaceOf(source_slots_[i]);
      const std::uint8_t* block = IndexerBlockOf(model_.arena().Indexer(layer), place);
      std::uint8_t* target = indexer.data() + i * static_cast<std::size_t>(indexer_bytes);
      backend_.CopyToHost(target, block + place.token * value_bytes,
                          static_cast<std::size_t>(value_bytes));
      if (extents.format == KvFormat::kFp8) {
        backend_.CopyToHost(target + value_bytes,
                            block + IndexerBlock::Scale(static_cast<int>(place.token)),
                            kScaleBytes);
      }
    }
  }
  backend_.Synchronize();
}

// Rows that lie side by side in a block are copied at once: a device's copies cost by the call.
void CopyingExecutor::Copy(const ForwardBatch& batch) {
  const std::size_t sources = source_slots_.size();
  DSA_CHECK(sources > 0, "CopyingExecutor: nothing to copy from");
  const KvFormat format = model_.arena().extents().format;
  const std::int64_t latent_bytes = LatentTokenBytes(format);
  const std::int64_t indexer_bytes = IndexerTokenBytes(format);
  const std::int64_t value_bytes = IndexerValueBytes(format);
  region_.resize(static_cast<std::size_t>(kTokensPerBlock * std::max(latent_bytes, indexer_bytes)));
  const auto rows = batch.slots.size();
  for (std::size_t first = 0, end = 0; first < rows; first = end) {
    const Place place = PlaceOf(batch.slots[first]);
    end = first + 1;
    while (end < rows && batch.slots[end] == batch.slots[end - 1] + 1 &&
           PlaceOf(batch.slots[end]).block == place.block) {
      ++end;
    }
    const auto source_of = [&](std::size_t row, std::size_t layer) {
      const auto slot = static_cast<std::uint64_t>(batch.slots[row]);
      return CounterBits(slot, static_cast<std::uint64_t>(batch.positions[row]) * 1024 + layer);
    };
    for (std::size_t layer = 0; layer < latent_source_.size(); ++layer) {
      for (std::size_t row = first; row < end; ++row) {
        const std::uint64_t key = source_of(row, layer);
        std::uint8_t* target = region_.data() + (row - first) * latent_bytes;
        std::memcpy(target, latent_source_[layer].data() + key % sources * latent_bytes,
                    static_cast<std::size_t>(latent_bytes));
        MakeDistinct(target, kLatentValues, format, key);
      }
      backend_.CopyToDevice(LatentRecord(model_.arena().Latent(static_cast<int>(layer)), place),
                            region_.data(), (end - first) * latent_bytes);
    }
    for (std::size_t layer = 0; layer < indexer_source_.size(); ++layer) {
      std::uint8_t* values = region_.data();
      std::uint8_t* scales = values + (end - first) * value_bytes;
      for (std::size_t row = first; row < end; ++row) {
        const std::uint64_t key = source_of(row, layer);
        const std::uint8_t* source = indexer_source_[layer].data() + key % sources * indexer_bytes;
        std::uint8_t* target = values + (row - first) * value_bytes;
        std::memcpy(target, source, static_cast<std::size_t>(value_bytes));
        MakeDistinct(target, kIndexerValues, format, key);
        if (format == KvFormat::kFp8) {
          std::memcpy(scales + (row - first) * kScaleBytes, source + value_bytes, kScaleBytes);
        }
      }
      std::uint8_t* block = IndexerBlockOf(model_.arena().Indexer(static_cast<int>(layer)), place);
      backend_.CopyToDevice(block + place.token * value_bytes, values, (end - first) * value_bytes);
      if (format == KvFormat::kFp8) {
        backend_.CopyToDevice(block + IndexerBlock::Scale(static_cast<int>(place.token)), scales,
                              (end - first) * kScaleBytes);
      }
    }
  }
  backend_.Synchronize();
}

}  // namespace dsa::bench
