#include "tokenizer/byte_level.h"

#include "tokenizer/utf8.h"

#include <array>
#include <cstddef>

namespace dsa {
namespace {

constexpr bool StandsForItself(std::size_t byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

constexpr std::array<char32_t, 256> MakeByteCharacters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 0x100;
  for (std::size_t byte = 0; byte < characters.size(); ++byte) {
    characters[byte] = StandsForItself(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return characters;
}

constexpr std::array<char32_t, 256> kByteCharacters = MakeByteCharacters();

// Character to byte; the alphabet ends below 0x200.
constexpr std::array<std::int16_t, 0x200> MakeCharacterBytes() {
  std::array<std::int16_t, 0x200> bytes{};
  bytes.fill(-1);
  for (std::size_t byte = 0; byte < kByteCharacters.size(); ++byte) {
    bytes[kByteCharacters[byte]] = static_cast<std::int16_t>(byte);
  }
  return bytes;
}

constexpr std::array<std::int16_t, 0x200> kCharacterBytes = MakeCharacterBytes();

}  // namespace

std::string ByteCharacter(std::uint8_t byte) {
  std::string text;
  AppendUtf8(kByteCharacters[byte], text);
  return text;
}

std::optional<std::string> ByteLevelBytes(std::string_view token) {
  std::string bytes;
  std::size_t offset = 0;
  while (offset < token.size()) {
    const char32_t character = DecodeUtf8(token, offset);
    if (character >= kCharacterBytes.size() || kCharacterBytes[character] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kCharacterBytes[character]));
  }
  return bytes;
}

}  // namespace dsa
