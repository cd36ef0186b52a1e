// The shape of an HPACK header block (RFC 7541, section 6): where its integers and strings begin
// and end, without their values or the tables.  It finds what costs a decoder much and a sender
// nothing: integers padded with zeros, and strings that are announced and never come.
#pragma once

#include <cstdint>
#include <string_view>

namespace dsa {

class HeaderShape final {
 public:
  // A new block begins, in which no string is longer than `string_bytes_max`.
  void Begin(std::uint32_t string_bytes_max);

  // The block's next bytes, cut anywhere.  False where no honest encoder writes so: an integer of
  // more than five bytes, or a string over the limit.
  bool Feed(std::string_view bytes);

 private:
  enum class Part : std::uint8_t { kField, kName, kValue };  // what the next byte begins
  enum class Within : std::uint8_t { kNothing, kIndex, kLength, kString };

  void BeginField(std::uint8_t byte);
  bool BeginInteger(std::uint8_t byte, std::uint8_t prefix, Within of);
  bool ContinueInteger(std::uint8_t byte);
  bool EndInteger();
  void EndString();

  std::uint32_t string_bytes_max_ = 0;
  Part next_ = Part::kField;
  Within within_ = Within::kNothing;
  std::uint32_t integer_ = 0;
  std::uint32_t integer_bytes_ = 0;  // behind the prefix
  std::uint32_t string_left_ = 0;
};

}  // namespace dsa
