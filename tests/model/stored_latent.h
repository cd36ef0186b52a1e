// Tensors of a checkpoint as its files hold them, and what kv_b becomes of them.
#pragma once

#include "common/numeric.h"
#include "model/weights.h"
#include "tests/model/checkpoint_files.h"

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

namespace dsa::testing {

// All tensors of a folder, read independently.
struct Stored {
  std::string type;
  std::vector<std::int64_t> shape;
  std::string bytes;

  float At(std::size_t index) const {
    if (type == "F32") {
      float value = 0;
      std::memcpy(&value, bytes.data() + 4 * index, 4);
      return value;
    }
    if (type == "BF16") {
      Bf16 value{};
      std::memcpy(&value, bytes.data() + 2 * index, 2);
      return ToFloat(value);
    }
    return ToFloat(Fp8E4m3{static_cast<std::uint8_t>(bytes[index])});
  }
};
inline std::map<std::string, Stored> ReadAll(const TemporaryFolder& folder) {
  std::map<std::string, Stored> tensors;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    if (entry.path().extension() != ".safetensors") {
      continue;
    }
    const ShardContents shard = ReadShard(entry.path().string());
    for (const auto& [name, info] : shard.header.items()) {
      if (name != "__metadata__") {
        tensors[name] = {
            .type = info["dtype"], .shape = info["shape"], .bytes = shard.Tensor(name)};
      }
    }
  }
  return tensors;
}

// The element [head, row, col] of w_uk or w_uv.
inline float At(const ConstAnyTensor3& tensor, std::int64_t head, std::int64_t row,
                std::int64_t col) {
  const std::int64_t index = head * tensor.row_stride + row * tensor.head_stride + col;
  return tensor.type == DataType::kF32 ? static_cast<const float*>(tensor.data)[index]
                                       : ToFloat(static_cast<const Bf16*>(tensor.data)[index]);
}

// w_uk and w_uv against kv_b [H * (N + V), 512], de-quantized here.
inline void CheckLatent(const AttentionWeights& weights, const ModelConfig& config,
                        const std::map<std::string, Stored>& stored, const std::string& name) {
  const Stored& kv_b = stored.at(name);
  REQUIRE(weights.w_uk.rows == config.heads);
  REQUIRE(weights.w_uk.heads == config.nope);
  REQUIRE(weights.w_uv.heads == config.value);
  REQUIRE(weights.w_uk.type == config.activation_type);
  const Stored* const scales = kv_b.type == "F8_E4M3" ? &stored.at(name + "_scale_inv") : nullptr;
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < kv_b.shape[0]; ++row) {
    for (std::int64_t col = 0; col < 512; ++col) {
      double expected = kv_b.At(static_cast<std::size_t>(row * 512 + col));
      if (scales != nullptr) {
        expected *= scales->At(static_cast<std::size_t>(row / 128 * 4 + col / 128));
      }
      if (config.activation_type == DataType::kBf16) {
        expected = ToFloat(ToBf16(static_cast<float>(expected)));
      }
      const std::int64_t head = row / (config.nope + config.value);
      const std::int64_t within = row % (config.nope + config.value);
      const float actual = within < config.nope ? At(weights.w_uk, head, within, col)
                                                : At(weights.w_uv, head, within - config.nope, col);
      wrong += actual != static_cast<float>(expected) ? 1 : 0;
    }
  }
  CHECK(wrong == 0);
}

// W_UV as it is stored beside its de-quantized copy, where both are the same numbers.
inline void CheckFp8Values(const AttentionWeights& weights, const ModelConfig& config,
                           const std::map<std::string, Stored>& stored, const std::string& name) {
  const Stored& kv_b = stored.at(name);
  const ScaledHeads& fp8 = weights.w_uv_fp8;
  const bool is_kept = kv_b.type == "F8_E4M3" && config.nope % 128 == 0 &&
                       config.value % 128 == 0 && config.activation_type == DataType::kBf16 &&
                       config.scale_format == ScaleFormat::kPowerOfTwo;
  REQUIRE((fp8.values.data != nullptr) == is_kept);
  if (!is_kept) {
    return;
  }
  REQUIRE(fp8.values.type == DataType::kFp8E4m3);
  REQUIRE(fp8.values.rows == config.heads);
  REQUIRE(fp8.values.heads == config.value);
  REQUIRE(fp8.values.cols == 512);
  REQUIRE(fp8.scales.rows == config.heads * config.value / 128);
  REQUIRE(fp8.scales.cols == 4);
  const Stored& scales = stored.at(name + "_scale_inv");
  std::int64_t wrong = 0;
  for (std::int64_t row = 0; row < config.heads * config.value; ++row) {
    const std::int64_t head = row / config.value;
    const std::int64_t within = row % config.value;
    const std::int64_t stored_row = head * (config.nope + config.value) + config.nope + within;
    for (std::int64_t col = 0; col < 512; ++col) {
      const float code = ToFloat(static_cast<const Fp8E4m3*>(
          fp8.values.data)[head * fp8.values.row_stride + within * fp8.values.head_stride + col]);
      const float scale = fp8.scales.Row(row / 128)[col / 128];
      const bool is_right =
          code == kv_b.At(static_cast<std::size_t>(stored_row * 512 + col)) &&
          scale == scales.At(static_cast<std::size_t>(stored_row / 128 * 4 + col / 128)) &&
          code * scale == At(weights.w_uv, head, within, col);
      wrong += is_right ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace dsa::testing
