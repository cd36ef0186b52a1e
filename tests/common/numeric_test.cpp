// The narrow floats against their definitions: every fp8 code, and rounding at and between codes.
#include "common/numeric.h"

#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

double Fp8Value(int code) {
  const double sign = (code & 0x80) != 0 ? -1.0 : 1.0;
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  return exponent == 0 ? sign * std::ldexp(mantissa, -9)
                       : sign * std::ldexp(8 + mantissa, exponent - 10);
}

}  // namespace

TEST_CASE("every fp8 code reads as its definition and round-trips", "[common][numeric]") {
  for (int code = 0; code < 256; ++code) {
    const Fp8E4m3 value{static_cast<std::uint8_t>(code)};
    CAPTURE(code);
    if ((code & 0x7F) == 0x7F) {
      CHECK(std::isnan(ToFloat(value)));
      continue;
    }
    CHECK(ToFloat(value) == Fp8Value(code));
    CHECK(std::signbit(ToFloat(value)) == ((code & 0x80) != 0));
    CHECK(static_cast<int>(ToFp8E4m3(ToFloat(value)).bits) == code);
  }
}

TEST_CASE("fp8 rounds to nearest and ties to even between every pair of codes",
          "[common][numeric]") {
  for (int code = 0; code + 1 < 0x7F; ++code) {
    const auto low = static_cast<float>(Fp8Value(code));
    const auto high = static_cast<float>(Fp8Value(code + 1));
    const float middle = (low + high) / 2;  // exact: both have few bits
    CAPTURE(code);
    CHECK(static_cast<int>(ToFp8E4m3(std::nextafter(middle, 0.0F)).bits) == code);
    CHECK(static_cast<int>(ToFp8E4m3(std::nextafter(middle, 1e9F)).bits) == code + 1);
    CHECK(static_cast<int>(ToFp8E4m3(middle).bits) == (code % 2 == 0 ? code : code + 1));
    CHECK(static_cast<int>(ToFp8E4m3(-middle).bits) == ((code % 2 == 0 ? code : code + 1) | 0x80));
  }
}

TEST_CASE("fp8 saturates at 448 and keeps NaN", "[common][numeric]") {
  CHECK(ToFloat(ToFp8E4m3(449.0F)) == 448.0F);
  CHECK(ToFloat(ToFp8E4m3(-1e30F)) == -448.0F);
  CHECK(ToFloat(ToFp8E4m3(std::numeric_limits<float>::infinity())) == 448.0F);
  CHECK(std::isnan(ToFloat(ToFp8E4m3(std::nanf("")))));
}

TEST_CASE("bf16 rounds to nearest and ties to even", "[common][numeric]") {
  CHECK(ToFloat(ToBf16(1.0F)) == 1.0F);
  CHECK(ToBf16(1.0F + 0x1p-8F).bits == ToBf16(1.0F).bits);                // tie, even below
  CHECK(ToBf16(1.0F + 0x1p-7F + 0x1p-8F).bits == ToBf16(1.0F).bits + 2);  // tie, even above
  CHECK(ToBf16(1.0F + 0x1.2p-8F).bits == ToBf16(1.0F).bits + 1);
  CHECK(std::isnan(ToFloat(ToBf16(std::nanf("")))));
  CHECK(std::isinf(ToFloat(ToBf16(3.4e38F))));
}

TEST_CASE("a power-of-two scale is the smallest one that fits", "[common][numeric]") {
  for (const float amax :
       {1e-6F, 1e-4F, 0.03F, 0.875F, 1.0F, 447.9F, 448.0F, 448.1F, 896.0F, 1e6F}) {
    const float scale = Fp8BlockScale(amax, ScaleFormat::kPowerOfTwo);
    const float bounded = std::fmax(amax, 1e-4F);
    int exponent = 0;
    CAPTURE(amax, scale);
    CHECK(std::frexp(scale, &exponent) == 0.5F);
    CHECK(bounded / 448.0F <= scale);
    CHECK(bounded / 448.0F > scale / 2);
    CHECK(Fp8BlockScale(amax, ScaleFormat::kPlain) == bounded / 448.0F);
  }
}

}  // namespace dsa
