#include "server/cli/npy.h"

#include "common/check.h"

#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>

#include <fmt/core.h>

namespace dsa {
namespace {

// Magic, version 1.0, header length, header; padded so that the data begin at a multiple of 64.
std::string NpyHeader(std::int64_t rows, std::int64_t cols) {
  constexpr std::size_t kPreamble = 10;
  constexpr std::size_t kAlignment = 64;
  std::string header =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", rows, cols);
  header.append(kAlignment - 1 - (kPreamble + header.size()) % kAlignment, ' ');
  header.push_back('\n');
  std::string preamble("\x93NUMPY\x01\x00", 8);
  preamble.push_back(static_cast<char>(header.size() & 0xFFU));
  preamble.push_back(static_cast<char>(header.size() >> 8));
  return preamble + header;
}

}  // namespace

Status WriteNpy(const std::string& path, std::span<const float> values, std::int64_t rows,
                std::int64_t cols) {
  static_assert(std::endian::native == std::endian::little);
  DSA_CHECK(static_cast<std::int64_t>(values.size()) == rows * cols,
            "WriteNpy: {} values for shape [{}, {}]", values.size(), rows, cols);
  const std::string header = NpyHeader(rows, cols);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(header.data(), static_cast<std::streamsize>(header.size()));
  file.write(reinterpret_cast<const char*>(values.data()),
             static_cast<std::streamsize>(values.size_bytes()));
  file.close();
  if (!file) {
    return InvalidArgument(fmt::format("{}: can't be written: {}", path, std::strerror(errno)));
  }
  return {};
}

}  // namespace dsa
