#include "server/net/header_shape.h"

#include <algorithm>

namespace dsa {

void HeaderShape::Begin(std::uint32_t string_bytes_max) {
  string_bytes_max_ = string_bytes_max;
  next_ = Part::kField;
  within_ = Within::kNothing;
}

bool HeaderShape::Feed(std::string_view bytes) {
  constexpr std::uint8_t kLengthPrefix = 0x7f;  // the bit before says Huffman
  while (!bytes.empty()) {
    if (within_ == Within::kString) {
      const std::size_t now = std::min<std::size_t>(string_left_, bytes.size());
      bytes.remove_prefix(now);
      string_left_ -= static_cast<std::uint32_t>(now);
      if (string_left_ == 0) {
        EndString();
      }
      continue;
    }
    const auto byte = static_cast<std::uint8_t>(bytes.front());
    bytes.remove_prefix(1);
    if (within_ != Within::kNothing) {
      if (!ContinueInteger(byte)) {
        return false;
      }
    } else if (next_ == Part::kField) {
      BeginField(byte);
    } else if (!BeginInteger(byte, kLengthPrefix, Within::kLength)) {
      return false;
    }
  }
  return true;
}

void HeaderShape::BeginField(std::uint8_t byte) {
  std::uint8_t prefix = 0x0f;  // a literal that no table keeps
  bool literal = true;
  if ((byte & 0x80) != 0) {
    prefix = 0x7f;
    literal = false;
  } else if ((byte & 0x40) != 0) {
    prefix = 0x3f;  // a literal that the table keeps
  } else if ((byte & 0x20) != 0) {
    prefix = 0x1f;  // the table's size
    literal = false;
  }
  if (literal) {
    next_ = (byte & prefix) == 0 ? Part::kName : Part::kValue;
  }
  BeginInteger(byte, prefix, Within::kIndex);  // an index is never too large here
}

bool HeaderShape::BeginInteger(std::uint8_t byte, std::uint8_t prefix, Within of) {
  integer_ = byte & prefix;
  integer_bytes_ = 0;
  within_ = of;
  return integer_ == prefix || EndInteger();
}

bool HeaderShape::ContinueInteger(std::uint8_t byte) {
  constexpr std::uint32_t kBytesMax = 4;  // values up to 2^28
  integer_ += std::uint32_t{byte & 0x7fU} << (7 * integer_bytes_);
  ++integer_bytes_;
  if ((byte & 0x80) != 0) {
    return integer_bytes_ < kBytesMax;
  }
  return EndInteger();
}

bool HeaderShape::EndInteger() {
  const bool is_length = within_ == Within::kLength;
  within_ = Within::kNothing;
  if (!is_length) {
    return true;
  }
  if (integer_ > string_bytes_max_) {
    return false;
  }
  string_left_ = integer_;
  if (string_left_ == 0) {
    EndString();
  } else {
    within_ = Within::kString;
  }
  return true;
}

void HeaderShape::EndString() {
  within_ = Within::kNothing;
  next_ = next_ == Part::kName ? Part::kValue : Part::kField;
}

}  // namespace dsa
