// The names that --device and the key `device` take.
#pragma once

#include <optional>
#include <string_view>

namespace dsa {

enum class DeviceKind { kCpu, kCuda };

struct DeviceName {
  DeviceKind kind;
  int index;  // of a CUDA device; 0 for the CPU
};

inline constexpr int kDeviceIndexMax = 63;
inline constexpr std::string_view kDeviceNames = "cpu, cuda, cuda:N with N in [0, 63]";

// "cpu", "cuda" (the first one), "cuda:3"; nullopt for anything else, "cuda:03" included.
std::optional<DeviceName> ParseDevice(std::string_view text);

}  // namespace dsa
