// Device memory with random contents, and the list of kernel benchmarks.
#pragma once

#include "bench/harness.h"
#include "common/view.h"
#include "kernels/backend.h"

namespace dsa::bench {

// A [rows, cols] matrix of random values.
struct DeviceMatrix {
  DeviceBuffer buffer;
  AnyMatrix view;
};
DeviceMatrix RandomMatrix(Backend& backend, DataType type, std::int64_t rows, std::int64_t cols);

// Scales of about 0.01.
DeviceBuffer RandomScales(Backend& backend, std::int64_t count, ScaleFormat format);

void BenchLinear(Backend& backend, const Report& report);
void BenchRows(Backend& backend, const Report& report);
void BenchExperts(Backend& backend, const Report& report);
void BenchDecode(Backend& backend, const Report& report);
void BenchIndexer(Backend& backend, const Report& report);
void BenchTopK(Backend& backend, const Report& report);
void BenchAttention(Backend& backend, const Report& report);

}  // namespace dsa::bench
