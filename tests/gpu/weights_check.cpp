// What lies on the GPU after loading is what lies in the CPU's memory, byte for byte.
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "model/checkpoint.h"
#include "model/random_weights.h"
#include "model/weight_loader.h"
#include "tests/gpu/gpu_checks.h"

#include <cstdlib>
#include <cstring>

#include <catch2/catch.hpp>
#include <fmt/core.h>

namespace dsa {
namespace {

std::unique_ptr<CudaBackend> MustMakeCuda() {
  auto backend = CudaBackend::Make(0);
  if (!backend.ok()) {
    fmt::print(stderr, "skipped: {}\n", backend.error().message);
    std::exit(77);
  }
  return std::move(backend).value();
}

// Buffers that differ.
int Differences(const DeviceWeights& cpu, const DeviceWeights& cuda, Backend& device) {
  REQUIRE(cpu.buffers.size() == cuda.buffers.size());
  int different = 0;
  for (std::size_t i = 0; i < cpu.buffers.size(); ++i) {
    REQUIRE(cpu.buffers[i].bytes() == cuda.buffers[i].bytes());
    std::vector<std::byte> bytes(cuda.buffers[i].bytes());
    device.CopyToHost(bytes.data(), cuda.buffers[i].data(), bytes.size());
    device.Synchronize();
    different += std::memcmp(bytes.data(), cpu.buffers[i].data(), bytes.size()) == 0 ? 0 : 1;
  }
  return different;
}

// What is between tensors is never written: zeroed on both sides first, it is equal.
template <typename Load>
DeviceWeights LoadOverZeros(Backend& backend, const Load& load) {
  DeviceWeights first = load();
  for (const DeviceBuffer& buffer : first.buffers) {
    backend.Zero(buffer.data(), buffer.bytes());
  }
  backend.Synchronize();
  first = {};
  return load();
}

}  // namespace

TEST_CASE("loaded weights are the CPU's byte for byte", "[weights]") {
  const Checkpoint checkpoint = Checkpoint::Open(testing::kGpuModel).value();
  CpuBackend cpu(1);
  const std::unique_ptr<CudaBackend> cuda = MustMakeCuda();
  NoProgress progress;
  const auto load = [&](Backend& backend) {
    return LoadOverZeros(backend,
                         [&] { return LoadWeights(checkpoint, backend, progress).value(); });
  };
  CHECK(Differences(load(cpu), load(*cuda), *cuda) == 0);
}

TEST_CASE("random weights are the CPU's byte for byte", "[weights]") {
  const ModelConfig config = LoadModelConfig(testing::kGpuModel).value();
  CpuBackend cpu(8);
  const std::unique_ptr<CudaBackend> cuda = MustMakeCuda();
  const auto make = [&](Backend& backend) {
    return LoadOverZeros(backend, [&] { return MakeRandomWeights(config, 3, backend).value(); });
  };
  CHECK(Differences(make(cpu), make(*cuda), *cuda) == 0);
}

}  // namespace dsa
