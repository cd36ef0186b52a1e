// dsa_kernel_bench [threads]: the CPU backend's ops against the machine's measured ceilings.
#include "bench/kernels/kernel_bench.h"
#include "common/prng.h"
#include "common/view.h"
#include "kernels/cpu/cpu_backend.h"

#include <charconv>
#include <string_view>
#include <thread>

#include <fmt/core.h>

namespace dsa::bench {

DeviceMatrix RandomMatrix(Backend& backend, DataType type, std::int64_t rows, std::int64_t cols) {
  const std::vector<float> values = RandomValues(rows * cols, 1);
  auto buffer = backend.Allocate(values.size() * static_cast<std::size_t>(SizeOf(type)));
  DSA_CHECK(buffer.ok(), "RandomMatrix: no memory for [{}, {}]", rows, cols);
  DeviceMatrix matrix{.buffer = std::move(buffer).value(), .view = {}};
  std::vector<std::uint8_t> bytes(matrix.buffer.bytes());
  for (std::size_t i = 0; i < values.size(); ++i) {
    switch (type) {
      case DataType::kF32: reinterpret_cast<float*>(bytes.data())[i] = values[i]; break;
      case DataType::kBf16: reinterpret_cast<Bf16*>(bytes.data())[i] = ToBf16(values[i]); break;
      case DataType::kFp8E4m3: bytes[i] = ToFp8E4m3(200.0F * values[i]).bits; break;
      case DataType::kF64: reinterpret_cast<double*>(bytes.data())[i] = values[i]; break;
    }
  }
  backend.CopyToDevice(matrix.buffer.data(), bytes.data(), bytes.size());
  matrix.view = {
      .data = matrix.buffer.data(), .type = type, .rows = rows, .cols = cols, .row_stride = cols};
  return matrix;
}

DeviceBuffer RandomScales(Backend& backend, std::int64_t count, ScaleFormat format) {
  std::vector<float> scales(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < scales.size(); ++i) {
    scales[i] = format == ScaleFormat::kPowerOfTwo
                    ? (CounterBits(2, i) % 2 == 0 ? 0x1p-6F : 0x1p-7F)
                    : 0.01F + 0.001F * CounterUniform(2, i);
  }
  auto buffer = backend.Allocate(scales.size() * sizeof(float));
  DSA_CHECK(buffer.ok(), "RandomScales: no memory for {}", count);
  backend.CopyToDevice(buffer.value().data(), scales.data(), scales.size() * sizeof(float));
  return std::move(buffer).value();
}

namespace {

int Main(int threads) {
  CpuBackend backend(threads);
  const Status reserved = backend.ReserveScratch({
      .tokens_max = 1024,
      .context_max = 131072,
      .masked_context_max = 4096,
      .hidden = 7168,
      .heads = 128,
      .nope = 128,
      .value = 128,
      .index_heads = 64,
      .index_topk = 2048,
      .experts = 64,
      .experts_per_token = 4,
      .expert_width = 2048,
      .linear_width_max = 24576,
      .logit_rows_max = 16,
      .vocabulary = 129280,
  });
  if (!reserved.ok()) {
    fmt::print(stderr, "{}\n", reserved.error().message);
    return ExitCode(reserved.error());
  }
  const Report report(MeasureCeilings(threads));
  BenchLinear(backend, report);
  BenchRows(backend, report);
  BenchExperts(backend, report);
  BenchDecode(backend, report);
  BenchIndexer(backend, report);
  BenchTopK(backend, report);
  BenchAttention(backend, report);
  return 0;
}

}  // namespace
}  // namespace dsa::bench

int main(int argc, char** argv) {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  if (argc > 1) {
    const std::string_view text = argv[1];
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), threads);
    if (parsed.ptr != text.data() + text.size() || threads < 1) {
      fmt::print(stderr, "dsa_kernel_bench: threads is '{}', expected a number above 0\n", text);
      return 2;
    }
  }
  return dsa::bench::Main(threads);
}
