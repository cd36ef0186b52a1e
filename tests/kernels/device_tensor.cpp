#include "tests/kernels/test_backend.h"

#include <cmath>

namespace dsa::testing {
namespace {

void Encode(DataType type, float value, std::uint8_t* target) {
  switch (type) {
    case DataType::kF32: std::memcpy(target, &value, sizeof(value)); break;
    case DataType::kBf16: {
      const Bf16 narrow = ToBf16(value);
      std::memcpy(target, &narrow, sizeof(narrow));
      break;
    }
    case DataType::kFp8E4m3: *target = ToFp8E4m3(value).bits; break;
    case DataType::kF64: {
      const double wide = value;
      std::memcpy(target, &wide, sizeof(wide));
      break;
    }
  }
}

float Decode(DataType type, const std::uint8_t* source) {
  float value = 0.0F;
  switch (type) {
    case DataType::kF32: std::memcpy(&value, source, sizeof(value)); break;
    case DataType::kBf16: {
      Bf16 narrow{};
      std::memcpy(&narrow, source, sizeof(narrow));
      value = ToFloat(narrow);
      break;
    }
    case DataType::kFp8E4m3: value = ToFloat(Fp8E4m3{*source}); break;
    case DataType::kF64: {
      double wide = 0.0;
      std::memcpy(&wide, source, sizeof(wide));
      value = static_cast<float>(wide);
      break;
    }
  }
  return value;
}

std::vector<std::uint8_t> EncodeRows(DataType type, TensorShape shape,
                                     std::span<const float> values) {
  const std::int64_t size = SizeOf(type);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(shape.rows * shape.row_stride * size),
                                  0xFF);
  for (std::int64_t r = 0; r < shape.rows; ++r) {
    for (std::int64_t c = 0; c < shape.cols; ++c) {
      Encode(type, values[static_cast<std::size_t>(r * shape.cols + c)],
             bytes.data() + (r * shape.row_stride + c) * size);
    }
  }
  return bytes;
}

}  // namespace

DeviceTensor::DeviceTensor(Backend& backend, DataType type, TensorShape shape,
                           std::span<const float> values)
    : type_(type), shape_(shape), bytes_(backend, EncodeRows(type, shape, values)) {
  REQUIRE(static_cast<std::int64_t>(values.size()) == shape.rows * shape.cols);
}

DeviceTensor::DeviceTensor(Backend& backend, DataType type, TensorShape shape)
    : type_(type),
      shape_(shape),
      bytes_(DeviceArray<std::uint8_t>::Poisoned(backend,
                                                 shape.rows * shape.row_stride * SizeOf(type))) {}

DeviceTensor DeviceTensor::Poisoned(Backend& backend, DataType type, TensorShape shape) {
  return DeviceTensor(backend, type, shape);
}

AnyMatrix DeviceTensor::View() const {
  return {.data = bytes_.data(),
          .type = type_,
          .rows = shape_.rows,
          .cols = shape_.cols,
          .row_stride = shape_.row_stride};
}

AnyTensor3 DeviceTensor::Heads(std::int64_t heads) const {
  return HeadsOf(View(), heads);
}

std::vector<std::uint8_t> DeviceTensor::DownloadBits() const {
  const std::vector<std::uint8_t> bytes = bytes_.Download();
  const std::int64_t size = SizeOf(type_);
  std::vector<std::uint8_t> bits;
  bits.reserve(static_cast<std::size_t>(shape_.rows * shape_.cols * size));
  for (std::int64_t r = 0; r < shape_.rows; ++r) {
    const auto row = bytes.begin() + r * shape_.row_stride * size;
    bits.insert(bits.end(), row, row + shape_.cols * size);
    REQUIRE(std::all_of(row + shape_.cols * size, row + shape_.row_stride * size,
                        [](std::uint8_t byte) { return byte == 0xFF; }));
  }
  return bits;
}

std::vector<float> DeviceTensor::Download() const {
  const std::vector<std::uint8_t> bits = DownloadBits();
  const auto size = static_cast<std::size_t>(SizeOf(type_));
  std::vector<float> values;
  values.reserve(bits.size() / size);
  for (std::size_t i = 0; i < bits.size(); i += size) {
    values.push_back(Decode(type_, bits.data() + i));
  }
  return values;
}

std::vector<float> RoundedTo(DataType type, std::span<const float> values) {
  std::vector<float> rounded;
  rounded.reserve(values.size());
  for (const float value : values) {
    std::uint8_t bytes[sizeof(float)] = {};
    Encode(type, value, bytes);
    rounded.push_back(Decode(type, bytes));
  }
  return rounded;
}

double RelativeError(std::span<const float> actual, std::span<const double> expected) {
  REQUIRE(actual.size() == expected.size());
  double difference = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(actual[i] - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  return difference == 0.0 ? 0.0 : std::sqrt(difference / norm);
}

std::string Name(DataType type) {
  switch (type) {
    case DataType::kF32: return "f32";
    case DataType::kBf16: return "bf16";
    case DataType::kFp8E4m3: return "fp8";
    case DataType::kF64: return "f64";
  }
  return "?";
}

}  // namespace dsa::testing
