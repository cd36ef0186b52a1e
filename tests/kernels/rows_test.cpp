// How the CPU ops read rows: exactly, whatever the type.
#include "kernels/cpu/rows.h"

#include <bit>
#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::rows_test {

TEST_CASE("rows are read exactly, every code of fp8 too", "[kernels][rows]") {
  // 256 codes and 13 more: pieces of sixteen, of eight, and single ones.
  std::vector<Fp8E4m3> codes;
  std::vector<Bf16> halves;
  for (int i = 0; i < 269; ++i) {
    codes.push_back({static_cast<std::uint8_t>(i % 256)});
    halves.push_back(ToBf16(static_cast<float>(i) - 3.25F));
  }
  std::vector<float> values(codes.size());
  std::vector<double> wide(codes.size());
  LoadRow(codes.data(), DataType::kFp8E4m3, 269, values.data());
  LoadRowWide(codes.data(), DataType::kFp8E4m3, 269, wide.data());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    CAPTURE(i);
    const float expected = ToFloat(codes[i]);
    if (std::isnan(expected)) {
      CHECK(std::isnan(values[i]));
      CHECK(std::isnan(wide[i]));
    } else {
      CHECK(std::bit_cast<std::uint32_t>(values[i]) == std::bit_cast<std::uint32_t>(expected));
      CHECK(wide[i] == static_cast<double>(expected));
    }
  }
  LoadRowWide(halves.data(), DataType::kBf16, 269, wide.data());
  for (std::size_t i = 0; i < halves.size(); ++i) {
    CHECK(wide[i] == static_cast<double>(ToFloat(halves[i])));
  }
}

}  // namespace dsa::rows_test
