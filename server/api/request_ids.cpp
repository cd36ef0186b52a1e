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

RequestIds::RequestIds() : nonce_(RandomNonce()) {}

Result<std::string> RequestIds::Claim(std::string_view wanted, std::string_view field) {
  if (wanted.size() > kRequestIdBytesMax) {
    return InvalidArgument(
        fmt::format("{}: {} bytes, at most {}", field, wanted.size(), kRequestIdBytesMax));
  }
  if (!std::all_of(wanted.begin(), wanted.end(), IsIdCharacter)) {
    return InvalidArgument(fmt::format("{}: \"{}\" has characters other than A-Z a-z 0-9 . _ -",
                                       field, Escape(wanted, kShownIdBytesMax)));
  }
  const std::lock_guard lock(mutex_);
  std::string id(wanted);
  if (id.empty()) {
    id = MakeId();
  }
  if (!live_.insert(id).second) {
    return Error{ErrorCode::kAlreadyExists,
                 fmt::format("{}: \"{}\" names a request that is live", field, id)};
  }
  return id;
}

std::string RequestIds::ClaimProposed(std::string_view proposed) {
  const std::lock_guard lock(mutex_);
  std::string id(proposed);
  if (!IsRequestId(proposed) || !live_.insert(id).second) {
    do {
      id = MakeId();
    } while (!live_.insert(id).second);  // a client may have named one like ours
  }
  return id;
}

std::string RequestIds::MakeId() {
  return fmt::format("{:016x}-{}", nonce_, ++made_);
}

void RequestIds::Release(const std::string& id) {
  const std::lock_guard lock(mutex_);
  live_.erase(id);
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
