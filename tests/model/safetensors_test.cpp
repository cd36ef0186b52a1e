// The rules of a safetensors header: what the format allows is read, everything else is refused
// with one line that names the tensor.
#include "model/safetensors.h"

#include "tests/model/checkpoint_files.h"

#include <random>

#include <catch2/catch.hpp>

namespace dsa {
namespace {

using testing::Safetensors;
using testing::TemporaryFolder;
using testing::WriteBytes;

// Parses a header that is followed by `data_bytes` bytes.
Result<std::vector<StoredTensor>> Parse(const std::string& header, std::int64_t data_bytes) {
  return ParseSafetensorsHeader(header, 8 + static_cast<std::int64_t>(header.size()) + data_bytes,
                                "f");
}

// Whether the header is refused with a line that contains `expected`.
bool Refuses(const std::string& header, std::int64_t data_bytes, const std::string& expected) {
  const auto result = Parse(header, data_bytes);
  UNSCOPED_INFO((result.ok() ? "accepted" : result.error().message));
  return !result.ok() && testing::IsOneLine(result.error().message) &&
         result.error().code == ErrorCode::kInvalidArgument &&
         result.error().message.find(expected) != std::string::npos;
}

std::string Entry(const std::string& name, const std::string& type, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + type + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

}  // namespace

TEST_CASE("A header lists tensors in the order of their bytes", "[model][safetensors]") {
  const std::string header = "  {\"__metadata__\":{\"format\":\"pt\",\"x\":\"\"}," +
                             Entry("b", "BF16", "[2,3]", "[4,16]") + "," +
                             Entry("a", "F32", "[]", "[0,4]") + "," +
                             Entry("empty", "F8_E4M3", "[5,0]", "[16,16]") + "," +
                             Entry("c", "F8_E4M3", "[3]", "[16,19]") + "}   ";
  const auto tensors = Parse(header, 19).value();
  const auto begin = static_cast<std::int64_t>(8 + header.size());
  REQUIRE(tensors.size() == 4);
  CHECK(tensors[0].name == "a");
  CHECK(tensors[0].shape.empty());
  CHECK(tensors[0].offset == begin);
  CHECK(tensors[0].bytes == 4);
  CHECK(tensors[1].name == "b");
  CHECK(tensors[1].type == DataType::kBf16);
  CHECK(tensors[1].shape == std::vector<std::int64_t>{2, 3});
  CHECK(tensors[1].offset == begin + 4);
  CHECK(tensors[1].bytes == 12);
  CHECK(tensors[2].name == "empty");
  CHECK(tensors[3].name == "c");
  CHECK(tensors[3].offset == begin + 16);
  CHECK(Parse("{}", 0).value().empty());
  CHECK(Parse("{\"__metadata__\":{}}", 0).value().empty());
}

TEST_CASE("A header that breaks a rule is refused by name", "[model][safetensors]") {
  const auto one = [](const std::string& shape, const std::string& offsets) {
    return "{" + Entry("w", "F32", shape, offsets) + "}";
  };
  REQUIRE(Parse(one("[2]", "[0,8]"), 8).ok());
  // Layout: no gap, no overlap, nothing before the first or behind the last.
  CHECK(Refuses(one("[2]", "[4,12]"), 12, "tensor \"w\": data_offsets begin at 4"));
  CHECK(Refuses(one("[2]", "[0,8]"), 9, "1 bytes follow the last tensor"));
  CHECK(Refuses(one("[2]", "[0,8]"), 7, "ends at data byte 8, the file holds 7"));
  CHECK(Refuses(one("[2]", "[0,4]"), 4, "span 4 bytes, F32 [2] takes 8"));
  CHECK(Refuses(one("[2]", "[8,0]"), 8, "end before they begin"));
  CHECK(Refuses("{}", 1, "1 bytes follow"));
  const auto two = [](const std::string& a, const std::string& b) {
    return "{" + Entry("a", "F32", "[2]", a) + "," + Entry("b", "F32", "[2]", b) + "}";
  };
  REQUIRE(Parse(two("[8,16]", "[0,8]"), 16).ok());
  CHECK(Refuses(two("[0,8]", "[4,12]"), 12, "begin at 4, the tensor before ends at 8"));
  CHECK(Refuses(two("[0,8]", "[0,8]"), 8, "begin at 0, the tensor before ends at 8"));
  CHECK(Refuses(two("[0,8]", "[12,20]"), 20, "begin at 12, the tensor before ends at 8"));
  // Sizes that do not fit.
  CHECK(Refuses(one("[2,9223372036854775807]", "[0,8]"), 8, "is too large"));
  CHECK(Refuses(one("[4294967296,4294967296,4]", "[0,0]"), 0, "is too large"));
  CHECK(Refuses(one("[2,9223372036854775808]", "[0,8]"), 8, "9223372036854775808, which is too"));
  CHECK(Refuses(one("[2,18446744073709551614]", "[0,8]"), 8, "which is too large"));
  CHECK(Refuses(one("[2,99999999999999999999999]", "[0,8]"), 8, "not an integer"));
  CHECK(Refuses(one("[0,9223372036854775807,4]", "[0,8]"), 8, "takes 0"));
  CHECK(Refuses(one("[2]", "[0,9223372036854775807]"), 8, "span 9223372036854775807 bytes"));
  CHECK(Refuses(one("[2305843009213693951]", "[0,9223372036854775804]"), 8, "the file holds 8"));
  // Types.
  CHECK(Refuses(one("[-2]", "[0,8]"), 8, "shape holds -2, which is negative"));
  CHECK(Refuses(one("[2.0]", "[0,8]"), 8, "not an integer"));
  CHECK(Refuses(one("[\"2\"]", "[0,8]"), 8, "shape holds a string"));
  CHECK(Refuses(one("[null]", "[0,8]"), 8, "shape holds null"));
  CHECK(Refuses(one("[[2]]", "[0,8]"), 8, "shape holds an array"));
  CHECK(Refuses(one("2", "[0,8]"), 8, "shape is a number"));
  CHECK(Refuses(one("{}", "[0,8]"), 8, "shape is an object"));
  CHECK(Refuses(one("[2]", "[0]"), 8, "does not hold 2 numbers"));
  CHECK(Refuses(one("[2]", "[0,8,8]"), 8, "more than 2 numbers"));
  CHECK(Refuses(one("[2]", "[-1,8]"), 8, "data_offsets holds -1"));
  CHECK(Refuses("{" + Entry("w", "F16", "[2]", "[0,4]") + "}", 4,
                "tensor \"w\": dtype \"F16\" is not one of F32, BF16, F8_E4M3"));
  CHECK(Refuses("{\"w\":{\"dtype\":7}}", 0, "dtype is a number"));
  CHECK(Refuses("{\"w\":{\"dtype\":\"F32\",\"shape\":[0]}}", 0, "data_offsets is missing"));
  CHECK(Refuses("{\"w\":{\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "dtype is missing"));
  CHECK(Refuses("{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,0]}}", 0, "shape is missing"));
  CHECK(Refuses("{\"w\":{\"dtype\":\"F32\",\"extra\":1}}", 0, "unknown key \"extra\""));
  CHECK(Refuses("{\"w\":[]}", 0, "is an array, not an object"));
  CHECK(Refuses("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ holds a number, not a string"));
  CHECK(Refuses("{\"__metadata__\":{\"a\":{}}}", 0, "__metadata__ holds an object"));
  CHECK(Refuses("[]", 0, "header is an array, not an object"));
  CHECK(Refuses("7", 0, "header is a number, not an object"));
}

TEST_CASE("Doubled keys and text that is not JSON are refused", "[model][safetensors]") {
  const std::string entry = Entry("w", "F32", "[2]", "[0,8]");
  CHECK(Refuses("{" + entry + "," + entry + "}", 8, "tensor \"w\": stands in the header twice"));
  CHECK(Refuses("{\"w\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", 0, "dtype stands there twice"));
  CHECK(Refuses("{\"w\":{\"shape\":[],\"shape\":[]}}", 0, "shape stands there twice"));
  CHECK(Refuses("{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}", 0, "the key \"a\" twice"));
  CHECK(Refuses("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"));
  CHECK(Refuses("", 0, "not valid JSON"));
  CHECK(Refuses("{}{}", 0, "not valid JSON"));
  CHECK(Refuses("{} x", 0, "not valid JSON"));
  CHECK(Refuses("// c\n{}", 0, "not valid JSON"));
  CHECK(Refuses(std::string("{}\0", 3), 0, "NUL"));
  CHECK(Refuses("\xEF\xBB\xBF{}", 0, "byte-order mark"));
  CHECK(Refuses("{\"\xFF\":1}", 0, "not valid JSON"));
  CHECK(Refuses("{\"w\\n\\u0000\":1}", 0, "tensor \"w\\n\\u0000\": is a number"));
}

TEST_CASE("The limits of a header hold exactly", "[model][safetensors]") {
  const auto named = [](std::size_t bytes) {
    return "{" + Entry(std::string(bytes, 'n'), "F32", "[0]", "[0,0]") + "}";
  };
  CHECK(Parse(named(256), 0).ok());
  CHECK(Refuses(named(257), 0, "the name has 257 bytes, at most 256"));
  CHECK(Parse("{" + Entry("w", "F32", "[1,1,1,1,1,1,1,1]", "[0,4]") + "}", 4).ok());
  CHECK(Refuses("{" + Entry("w", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") + "}", 4,
                "shape holds more than 8 numbers"));
  const auto many = [](int count) {
    std::string header = "{";
    for (int i = 0; i < count; ++i) {
      header += (i > 0 ? "," : "") + Entry(std::to_string(i), "F32", "[0]", "[0,0]");
    }
    return header + "}";
  };
  CHECK(Parse(many(200'000), 0).value().size() == 200'000);
  CHECK(Refuses(many(200'001), 0, "more than 200000 tensors"));
  CHECK(Refuses("{\"w\":" + std::string(100'000, '['), 0, "is an array"));
  CHECK(Refuses("{\"w\":{\"dtype\":\"" + std::string(1'000'000, 'x') + "\"}}", 0, "dtype"));
}

TEST_CASE("A file cut short at any byte is refused", "[model][safetensors]") {
  const TemporaryFolder folder;
  const std::string path = folder / "f.safetensors";
  const std::string whole = Safetensors(
      "{" + Entry("a", "F32", "[3]", "[0,12]") + "," + Entry("b", "BF16", "[2,2]", "[12,20]") + "}",
      std::string(20, 'd'));
  WriteBytes(path, whole);
  REQUIRE(SafetensorsFile::Open(path).value().tensors().size() == 2);
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    WriteBytes(path, whole.substr(0, bytes));
    const auto opened = SafetensorsFile::Open(path);
    CAPTURE(bytes);
    REQUIRE_FALSE(opened.ok());
    REQUIRE(opened.error().message.find(path) == 0);
    REQUIRE(testing::IsOneLine(opened.error().message));
  }
  WriteBytes(path, whole + "x");
  CHECK_FALSE(SafetensorsFile::Open(path).ok());
}

TEST_CASE("A header length beyond the file or the limit is refused", "[model][safetensors]") {
  const TemporaryFolder folder;
  const std::string path = folder / "f.safetensors";
  for (const std::uint64_t length :
       {std::uint64_t{3}, std::uint64_t{100'000'000}, std::uint64_t{100'000'001},
        std::uint64_t{1} << 63, ~std::uint64_t{0}, ~std::uint64_t{0} - 8}) {
    std::string bytes = Safetensors("{}", "");
    std::memcpy(bytes.data(), &length, 8);
    WriteBytes(path, bytes);
    const auto opened = SafetensorsFile::Open(path);
    CAPTURE(length);
    REQUIRE_FALSE(opened.ok());
    CHECK(opened.error().message.find("header length " + std::to_string(length)) !=
          std::string::npos);
  }
}

TEST_CASE("A damaged header is refused or still tiles the file", "[model][safetensors]") {
  const std::string whole =
      "{\"__metadata__\":{\"k\":\"v\"}," + Entry("a", "F32", "[3]", "[0,12]") + "," +
      Entry("b", "BF16", "[2,2]", "[12,20]") + "," + Entry("c", "F8_E4M3", "[4]", "[20,24]") + "}";
  const std::string letters = "{}[]\",:0123456789-.eF \\u";
  std::mt19937 random(7);
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string header = whole;
    for (std::uint64_t edits = 1 + random() % 3; edits > 0; --edits) {
      const std::size_t at = random() % header.size();
      switch (random() % 4) {
        case 0: header[at] = letters[random() % letters.size()]; break;
        case 1: header[at] = static_cast<char>(random()); break;
        case 2: header.erase(at, 1 + random() % 4); break;
        default: header.insert(at, 1, letters[random() % letters.size()]); break;
      }
    }
    const auto parsed = Parse(header, 24);
    if (!parsed.ok()) {
      REQUIRE(testing::IsOneLine(parsed.error().message));
      continue;
    }
    ++accepted;
    std::int64_t expected = 8 + static_cast<std::int64_t>(header.size());
    for (const StoredTensor& tensor : parsed.value()) {
      REQUIRE(tensor.offset == expected);
      expected += tensor.bytes;
    }
    REQUIRE(expected == 8 + static_cast<std::int64_t>(header.size()) + 24);
  }
  CHECK(accepted > 100);  // names may change freely
}

}  // namespace dsa
