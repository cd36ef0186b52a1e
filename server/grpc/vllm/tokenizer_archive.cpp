#include "server/grpc/vllm/tokenizer_archive.h"

#include "common/file.h"

#include <array>
#include <filesystem>

#include <fmt/format.h>
#include <openssl/sha.h>
#include <zlib.h>

namespace dsa {
namespace {

constexpr std::int64_t kFileBytesMax = std::int64_t{64} << 20;

// Little-endian numbers, as ZIP has them (PKWARE's APPNOTE, 4.3).
class Bytes final {
 public:
  Bytes& Two(std::uint32_t value) { return Add(value, 2); }
  Bytes& Four(std::uint32_t value) { return Add(value, 4); }
  Bytes& Text(std::string_view text) {
    bytes_ += text;
    return *this;
  }
  std::uint32_t size() const { return static_cast<std::uint32_t>(bytes_.size()); }
  const std::string& text() const { return bytes_; }

 private:
  Bytes& Add(std::uint32_t value, int count) {
    constexpr std::uint32_t kByte = 0xFF;
    constexpr int kBits = 8;
    for (int i = 0; i < count; ++i) {
      bytes_ += static_cast<char>(value >> (kBits * i) & kByte);
    }
    return *this;
  }

  std::string bytes_;
};

// What an entry's two headers share, from "version needed to extract" on.
void AddEntry(const ArchiveFile& file, Bytes& bytes) {
  constexpr std::uint32_t kVersion = 20;
  constexpr std::uint32_t kFirstOfJanuary1980 = 0x21;
  const auto size = static_cast<std::uint32_t>(file.bytes.size());
  const auto* data = reinterpret_cast<const Bytef*>(file.bytes.data());
  bytes.Two(kVersion).Two(0).Two(0);      // no flags; stored
  bytes.Two(0).Two(kFirstOfJanuary1980);  // time and date
  bytes.Four(static_cast<std::uint32_t>(crc32(0, data, size)));
  bytes.Four(size).Four(size);  // compressed, and not
  bytes.Two(static_cast<std::uint32_t>(file.name.size())).Two(0);
}

}  // namespace

std::string ZipArchive(const std::vector<ArchiveFile>& files) {
  constexpr std::uint32_t kLocalHeader = 0x04034b50;
  constexpr std::uint32_t kCentralHeader = 0x02014b50;
  constexpr std::uint32_t kEnd = 0x06054b50;
  constexpr std::uint32_t kVersionMadeBy = 20;
  Bytes archive;
  Bytes directory;
  for (const ArchiveFile& file : files) {
    const std::uint32_t offset = archive.size();
    archive.Four(kLocalHeader);
    AddEntry(file, archive);
    archive.Text(file.name).Text(file.bytes);
    directory.Four(kCentralHeader).Two(kVersionMadeBy);
    AddEntry(file, directory);
    directory.Two(0).Two(0).Two(0).Four(0).Four(offset).Text(file.name);
  }
  const std::uint32_t offset = archive.size();
  const auto entries = static_cast<std::uint32_t>(files.size());
  archive.Text(directory.text());
  archive.Four(kEnd).Two(0).Two(0).Two(entries).Two(entries);
  archive.Four(directory.size()).Four(offset).Two(0);
  return archive.text();
}

std::string Sha256Hex(std::string_view bytes) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest.data());
  std::string hex;
  for (const unsigned char byte : digest) {
    hex += fmt::format("{:02x}", byte);
  }
  return hex;
}

Result<std::string> ReadTokenizerArchive(const std::vector<std::string>& paths) {
  if (paths.empty()) {
    return Error{ErrorCode::kFailedPrecondition, "the model has no tokenizer"};
  }
  std::vector<ArchiveFile> files;
  for (const std::string& path : paths) {
    Result<std::string> bytes = ReadFile(path, kFileBytesMax);
    const std::string name = std::filesystem::path(path).filename();
    if (!bytes.ok()) {
      return Error{ErrorCode::kFailedPrecondition, fmt::format("{} cannot be read", name)};
    }
    files.push_back({.name = name, .bytes = std::move(bytes).value()});
  }
  return ZipArchive(files);
}

}  // namespace dsa
