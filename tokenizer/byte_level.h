// The byte alphabet of byte-level BPE: tokenizer.json writes each byte of a token as one printable
// character.  Printable Latin-1 bytes stand for themselves; the other 68 are U+0100 upwards, in
// order (Radford et al. 2019, the GPT-2 encoder).  Pure functions; thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace dsa {

// The character that stands for `byte`, as UTF-8.
std::string ByteCharacter(std::uint8_t byte);

// The bytes that `token`, valid UTF-8, stands for; nullopt where it has a character outside of the
// alphabet.
std::optional<std::string> ByteLevelBytes(std::string_view token);

}  // namespace dsa
