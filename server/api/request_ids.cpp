#include "server/api/request_ids.h"

#include <algorithm>
#include <random>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::size_t kShownIdBytesMax = 128;

std::uint64_t RandomNonce() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

bool IsIdCharacter(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == '-';
}

}  // namespace

bool IsRequestId(std::string_view text) {
  return !text.empty() && text.size() <= kRequestIdBytesMax &&
         std::all_of(text.begin(), text.end(), IsIdCharacter);
}

Status CheckRequestId(std::string_view text, std::string_view field) {
  if (text.empty() || text.size() > kRequestIdBytesMax) {
    return InvalidArgument(
        fmt::format("{}: {} bytes, at most {}", field, text.size(), kRequestIdBytesMax));
  }
  if (!IsRequestId(text)) {
    return InvalidArgument(fmt::format("{}: \"{}\" has characters other than A-Z a-z 0-9 . _ -",
                                       field, Escape(text, kShownIdBytesMax)));
  }
  return {};
}

std::string MakeInstanceId() {
  return fmt::format("{:016x}{:016x}", RandomNonce(), RandomNonce());
}

RequestIds::RequestIds() : nonce_(RandomNonce()) {}

std::string RequestIds::Make() {
  return fmt::format("{:016x}-{}", nonce_, made_.fetch_add(1, std::memory_order_relaxed) + 1);
}

std::string Escape(std::string_view text, std::size_t bytes_max) {
  std::string escaped;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = byte >= 0x20 && byte < 0x7F && c != '\\' && c != '"';
    const std::string shown = plain ? std::string(1, c) : fmt::format("\\x{:02x}", byte);
    if (escaped.size() + shown.size() > bytes_max) {
      break;
    }
    escaped += shown;
  }
  return escaped;
}

}  // namespace dsa
