#include "server/device_name.h"

#include <charconv>
#include <string>

namespace dsa {

std::optional<DeviceName> ParseDevice(std::string_view text) {
  constexpr std::string_view kIndexed = "cuda:";
  if (text == "cpu") {
    return DeviceName{.kind = DeviceKind::kCpu, .index = 0};
  }
  if (text == "cuda") {
    return DeviceName{.kind = DeviceKind::kCuda, .index = 0};
  }
  if (!text.starts_with(kIndexed)) {
    return std::nullopt;
  }
  const std::string_view digits = text.substr(kIndexed.size());
  int index = -1;
  (void)std::from_chars(digits.data(), digits.data() + digits.size(), index);
  // Written back, it is the same text: no sign, no leading zero, nothing behind it.
  if (index < 0 || index > kDeviceIndexMax || std::to_string(index) != digits) {
    return std::nullopt;
  }
  return DeviceName{.kind = DeviceKind::kCuda, .index = index};
}

}  // namespace dsa
