// Rows at the end of one long sequence, and caches that hold it, for the attention benchmarks.
#pragma once

#include "bench/kernels/kernel_bench.h"
#include "kernels/batch_view.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/key_selection.h"
#include "kernels/ops/rope.h"

#include <cstdint>

namespace dsa::bench {

// Memory with a copy of `values`.
DeviceBuffer Upload(Backend& backend, const void* values, std::size_t bytes);

class PagedBatch final {
 public:
  // `rows` consecutive rows, the last at position context - 1.  Blocks lie in reverse order.
  PagedBatch(Backend& backend, KvFormat format, std::int64_t context, std::int64_t rows);

  std::int64_t rows() const { return rows_; }
  std::int64_t context() const { return context_; }
  // Visible keys of all rows together, at most `limit` each.
  double KeysSeen(std::int64_t limit) const;

  PagedRows View() const;
  Vector<const std::int32_t> Positions() const;
  LatentCacheView Latents() const;
  IndexerCacheView IndexerKeys() const;
  RopeTable Table() const;
  // Every (context / k)-th key of each row, k of them.
  KeySelection Select(std::int64_t k);

 private:
  void FillCaches();

  Backend& backend_;
  KvFormat format_;
  std::int64_t context_;
  std::int64_t rows_;
  std::int64_t blocks_;
  DeviceBuffer positions_;
  DeviceBuffer sequences_;
  DeviceBuffer tables_;
  DeviceMatrix cos_;
  DeviceMatrix sin_;
  DeviceBuffer latents_;
  DeviceBuffer indexer_keys_;
  DeviceBuffer selected_;
  DeviceBuffer counts_;
  DeviceBuffer mask_;
};

}  // namespace dsa::bench
