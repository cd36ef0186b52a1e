// Where the bytes of weights go in a vector of 64, for the AVX-512 form of the matrix product.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <limits>

namespace dsa::cpu {

// The double that a magnitude of fp8 is; its lower 48 bits are zero.
constexpr std::uint64_t DoubleBits(unsigned magnitude) {
  if (magnitude == 0x7F) {
    return std::bit_cast<std::uint64_t>(std::numeric_limits<double>::quiet_NaN());
  }
  const unsigned exponent = magnitude >> 3U;
  double value = (exponent == 0 ? 0.0 : 8.0) + static_cast<double>(magnitude & 7U);
  value *= 0x1p-9;
  for (unsigned i = 1; i < exponent; ++i) {
    value *= 2;
  }
  return std::bit_cast<std::uint64_t>(value);
}

// Bytes of a vector, each from where in another.
using ByteOrder = std::array<std::uint8_t, 64>;

struct Avx512Tables {
  // The highest and the second byte of the double of each magnitude.
  alignas(64) std::array<std::uint8_t, 128> upper;
  alignas(64) std::array<std::uint8_t, 128> lower;
  // Of pairs (lower, upper), 8 columns of each 128-bit lane, lanes 0 and 1 those of the first row:
  // the highest bytes of the doubles of four columns of each row.
  alignas(64) std::array<ByteOrder, 4> quads_of_fp8;
  // Of 16 columns of each of two rows: the higher bytes of the floats of four columns of each.
  alignas(64) std::array<ByteOrder, 4> quads_of_bf16;
};

constexpr Avx512Tables MakeAvx512Tables() {
  Avx512Tables tables{};
  for (unsigned i = 0; i < 128; ++i) {
    tables.upper[i] = static_cast<std::uint8_t>(DoubleBits(i) >> 56U);
    tables.lower[i] = static_cast<std::uint8_t>(DoubleBits(i) >> 48U);
  }
  for (unsigned i = 0; i < 4; ++i) {
    for (unsigned lane = 0; lane < 8; ++lane) {
      const unsigned row = lane / 4;
      const unsigned column = lane % 4;
      const unsigned pair = (2 * row + i / 2) * 16 + 2 * (i % 2 * 4 + column);
      tables.quads_of_fp8[i][8 * lane + 6] = static_cast<std::uint8_t>(pair);
      tables.quads_of_fp8[i][8 * lane + 7] = static_cast<std::uint8_t>(pair + 1);
      const unsigned word = row * 32 + 2 * (4 * i + column);
      tables.quads_of_bf16[i][4 * lane + 2] = static_cast<std::uint8_t>(word);
      tables.quads_of_bf16[i][4 * lane + 3] = static_cast<std::uint8_t>(word + 1);
    }
  }
  return tables;
}

}  // namespace dsa::cpu
