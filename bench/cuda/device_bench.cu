// The kernels that fill operands and flush the cache, and the clock.
#include "bench/cuda/device_bench.h"
#include "common/prng.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/kv_layout.h"

#include <algorithm>
#include <vector>

namespace dsa::bench {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kGrid = 132 * 16;
constexpr std::int64_t kFlushBytes = 256L << 20;  // five times the L2 cache

// Adds up `count` vectors; writes only if the sum is one that the zeros there cannot give.
__global__ void ReadKernel(const uint4* data, std::int64_t count, unsigned* sink) {
  unsigned sum = 0;
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < count;
       i += std::int64_t{kGrid} * kThreads) {
    const uint4 value = data[i];
    sum += value.x ^ value.y ^ value.z ^ value.w;
  }
  if (sum == 1U) {
    *sink = sum;
  }
}

__global__ void EmptyKernel() {}

// Four uniform values together are nearly normal; deviation 1.
__device__ float RandomValue(std::int64_t i) {
  const std::uint64_t bits = CounterBits(1, static_cast<std::uint64_t>(i));
  int sum = 0;
  for (int part = 0; part < 4; ++part) {
    sum += static_cast<int>(bits >> (16 * part) & 0xFFFFU) - 0x8000;
  }
  return static_cast<float>(sum) * (1.732F / 65536.0F);
}

__global__ void FillKernel(void* data, DataType type, std::int64_t count) {
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < count;
       i += std::int64_t{kGrid} * kThreads) {
    const float value = RandomValue(i);
    switch (type) {
      case DataType::kF32: static_cast<float*>(data)[i] = value; break;
      case DataType::kBf16:
        static_cast<__nv_bfloat16*>(data)[i] = cuda::FromFloat<__nv_bfloat16>(value);
        break;
      case DataType::kFp8E4m3:
        static_cast<std::uint8_t*>(data)[i] = cuda::ToFp8(120.0F * value);
        break;
      case DataType::kF64: static_cast<double*>(data)[i] = value; break;
    }
  }
}

__global__ void FillScalesKernel(float* data, std::int64_t count) {
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < count;
       i += std::int64_t{kGrid} * kThreads) {
    data[i] = CounterBits(2, static_cast<std::uint64_t>(i)) % 2 == 0 ? 0x1p-6F : 0x1p-7F;
  }
}

// One block of threads a cache block, in turn.
__global__ void FillIndexerKeysKernel(std::uint8_t* data, std::int64_t blocks) {
  for (std::int64_t block = blockIdx.x; block < blocks; block += kGrid) {
    std::uint8_t* to = data + block * IndexerBlock::kBytes;
    for (int i = static_cast<int>(threadIdx.x); i < IndexerBlock::Scale(0); i += kThreads) {
      to[i] = cuda::ToFp8(120.0F * RandomValue(block * IndexerBlock::kBytes + i));
    }
    if (threadIdx.x < kTokensPerBlock) {
      *reinterpret_cast<float*>(to + IndexerBlock::Scale(static_cast<int>(threadIdx.x))) = 0x1p-7F;
    }
  }
}

// The same of latents.
__global__ void FillLatentsKernel(std::uint8_t* data, std::int64_t tokens) {
  for (std::int64_t token = blockIdx.x; token < tokens; token += kGrid) {
    std::uint8_t* record = data + token * LatentBlock::kTokenBytes;
    for (int i = static_cast<int>(threadIdx.x); i < kLatentValues; i += kThreads) {
      record[i] = cuda::ToFp8(120.0F * RandomValue(token * kLatentValues + i));
    }
    if (threadIdx.x < LatentBlock::kScales) {
      reinterpret_cast<float*>(record + LatentBlock::Scales(0))[threadIdx.x] = 0x1p-7F;
    }
    if (threadIdx.x < kLatentRopeValues) {
      reinterpret_cast<__nv_bfloat16*>(record + LatentBlock::Rope(0))[threadIdx.x] =
          cuda::FromFloat<__nv_bfloat16>(RandomValue(token * kLatentRopeValues + threadIdx.x));
    }
  }
}

class Event final {
 public:
  Event() { DSA_CUDA_CHECK(cudaEventCreate(&event_)); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { DSA_CUDA_CHECK(cudaEventDestroy(event_)); }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

DeviceBench::DeviceBench(CudaBackend& backend)
    : backend_(backend), flush_(Allocate(kFlushBytes + 4)) {
  backend_.Zero(flush_.data(), flush_.bytes());
}

DeviceBuffer DeviceBench::Allocate(std::int64_t bytes) const {
  auto buffer = backend_.Allocate(static_cast<std::size_t>(bytes));
  DSA_CHECK(buffer.ok(), "DeviceBench: no memory for {} bytes", bytes);
  return std::move(buffer).value();
}

DeviceBuffer DeviceBench::Upload(const void* values, std::int64_t bytes) const {
  DeviceBuffer buffer = Allocate(bytes);
  backend_.CopyToDevice(buffer.data(), values, static_cast<std::size_t>(bytes));
  return buffer;
}

DeviceOperand DeviceBench::Random(DataType type, std::int64_t rows, std::int64_t cols) const {
  DeviceOperand operand{.buffer = Allocate(rows * cols * SizeOf(type)), .view = {}};
  operand.view = {
      .data = operand.buffer.data(), .type = type, .rows = rows, .cols = cols, .row_stride = cols};
  FillKernel<<<kGrid, kThreads, 0, backend_.stream()>>>(operand.buffer.data(), type, rows * cols);
  DSA_CUDA_CHECK(cudaGetLastError());
  return operand;
}

DeviceOperand DeviceBench::RandomScales(std::int64_t rows, std::int64_t cols) const {
  DeviceOperand operand = Random(DataType::kF32, rows, cols);
  FillScalesKernel<<<kGrid, kThreads, 0, backend_.stream()>>>(operand.buffer.As<float>(),
                                                              rows * cols);
  DSA_CUDA_CHECK(cudaGetLastError());
  return operand;
}

DeviceBuffer DeviceBench::RandomIndexerKeys(std::int64_t blocks) const {
  DeviceBuffer keys = Allocate(blocks * IndexerBlock::kBytes);
  FillIndexerKeysKernel<<<kGrid, kThreads, 0, backend_.stream()>>>(keys.As<std::uint8_t>(), blocks);
  DSA_CUDA_CHECK(cudaGetLastError());
  return keys;
}

DeviceBuffer DeviceBench::RandomLatents(std::int64_t blocks) const {
  DeviceBuffer latents = Allocate(blocks * LatentBlock::kBytes);
  FillLatentsKernel<<<kGrid, kThreads, 0, backend_.stream()>>>(latents.As<std::uint8_t>(),
                                                               blocks * kTokensPerBlock);
  DSA_CUDA_CHECK(cudaGetLastError());
  return latents;
}

void DeviceBench::FlushCache() const {
  ReadKernel<<<kGrid, kThreads, 0, backend_.stream()>>>(
      flush_.As<const uint4>(), kFlushBytes / 16,
      reinterpret_cast<unsigned*>(flush_.As<std::uint8_t>() + kFlushBytes));
  DSA_CUDA_CHECK(cudaGetLastError());
}

DeviceTiming DeviceBench::Measure(const std::function<void()>& body) const {
  return Measure([] {}, body);
}

DeviceTiming DeviceBench::Measure(const std::function<void()>& prepare,
                                  const std::function<void()>& body) const {
  constexpr int kSamplesMin = 30;
  constexpr int kLongSamplesMin = 5;
  constexpr double kLongUs = 10'000.0;
  constexpr int kSamplesMax = 200;
  constexpr double kTotalUs = 100'000.0;
  const Event start;
  const Event stop;
  const auto sample = [&] {
    prepare();
    FlushCache();
    DSA_CUDA_CHECK(cudaEventRecord(start.get(), backend_.stream()));
    body();
    DSA_CUDA_CHECK(cudaEventRecord(stop.get(), backend_.stream()));
    DSA_CUDA_CHECK(cudaEventSynchronize(stop.get()));
    float milliseconds = 0.0F;
    DSA_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, start.get(), stop.get()));
    return 1000.0 * static_cast<double>(milliseconds);
  };
  sample();
  sample();
  const double first_us = sample();
  const int samples = std::clamp(static_cast<int>(kTotalUs / (first_us + 1.0)),
                                 first_us > kLongUs ? kLongSamplesMin : kSamplesMin, kSamplesMax);
  std::vector<double> times;
  for (int i = 0; i < samples; ++i) {
    times.push_back(sample());
  }
  std::sort(times.begin(), times.end());
  const auto at = [&](double share) {
    return times[static_cast<std::size_t>(share * static_cast<double>(samples - 1) + 0.5)];
  };
  return {.median = at(0.5), .p10 = at(0.1), .p90 = at(0.9)};
}

DeviceTiming DeviceBench::MeasureCopy(std::int64_t bytes) const {
  const DeviceOperand from = Random(DataType::kF32, 1, bytes / 4);
  const DeviceBuffer to = Allocate(bytes);
  return Measure([&] {
    DSA_CUDA_CHECK(cudaMemcpyAsync(to.data(), from.buffer.data(), from.buffer.bytes(),
                                   cudaMemcpyDeviceToDevice, backend_.stream()));
  });
}

DeviceTiming DeviceBench::MeasureEmpty() const {
  return Measure([&] { EmptyKernel<<<1, 32, 0, backend_.stream()>>>(); });
}

}  // namespace dsa::bench
