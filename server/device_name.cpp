#include "server/device_name.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <string>

namespace dsa {
namespace {

// nullopt unless, written back, it is the same text: no sign, no leading zero, nothing behind it.
std::optional<int> ParseIndex(std::string_view digits) {
  int index = -1;
  (void)std::from_chars(digits.data(), digits.data() + digits.size(), index);
  if (index < 0 || index > kDeviceIndexMax || std::to_string(index) != digits) {
    return std::nullopt;
  }
  return index;
}

}  // namespace

std::optional<DeviceName> ParseDevice(std::string_view text) {
  constexpr std::string_view kIndexed = "cuda:";
  if (text == "cpu") {
    return DeviceName{.kind = DeviceKind::kCpu, .indices = {}};
  }
  if (text == "cuda") {
    return DeviceName{.kind = DeviceKind::kCuda, .indices = {}};
  }
  if (!text.starts_with(kIndexed)) {
    return std::nullopt;
  }
  DeviceName name{.kind = DeviceKind::kCuda, .indices = {}};
  std::string_view rest = text.substr(kIndexed.size());
  while (true) {
    const std::size_t comma = rest.find(',');
    const std::optional<int> index = ParseIndex(rest.substr(0, comma));
    if (!index ||
        std::find(name.indices.begin(), name.indices.end(), *index) != name.indices.end()) {
      return std::nullopt;
    }
    name.indices.push_back(*index);
    if (comma == std::string_view::npos) {
      return name;
    }
    rest.remove_prefix(comma + 1);
  }
}

std::vector<int> CudaIndices(const DeviceName& name, std::int64_t ranks) {
  std::vector<int> indices = name.indices;
  if (indices.empty()) {
    indices.resize(static_cast<std::size_t>(ranks));
    std::iota(indices.begin(), indices.end(), 0);
  }
  return indices;
}

}  // namespace dsa
