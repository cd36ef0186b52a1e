// The names that --device and the key `device` take.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace dsa {

enum class DeviceKind { kCpu, kCuda };

struct DeviceName {
  DeviceKind kind;
  std::vector<int> indices;  // of CUDA devices, all different; none: the first ones, or the CPU
};

inline constexpr int kDeviceIndexMax = 63;
inline constexpr std::string_view kDeviceNames =
    "cpu, cuda, cuda:N or, of several different devices, cuda:N,M,... with each in [0, 63]";

// "cpu", "cuda" (the first one, or as many as there are ranks), "cuda:3", "cuda:0,2"; nullopt for
// anything else, "cuda:03" and "cuda:1,1" included.
std::optional<DeviceName> ParseDevice(std::string_view text);

// The CUDA devices of so many ranks; as many as `name` has, or where it has none the first ones.
std::vector<int> CudaIndices(const DeviceName& name, std::int64_t ranks);

}  // namespace dsa
