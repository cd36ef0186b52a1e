#include "model/random_weights.h"

#include "common/overloaded.h"
#include "common/prng.h"
#include "kernels/ops/fill_random.h"
#include "model/weight_layout.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace dsa {
namespace {

// A tensor's own seed: its name and not its number, since ranks differ in what they hold.
std::uint64_t SeedOf(std::uint64_t seed, std::string_view name) {
  constexpr std::uint64_t kOffset = 0xCBF29CE484222325U;  // FNV-1a
  constexpr std::uint64_t kPrime = 0x100000001B3U;
  std::uint64_t hash = kOffset;
  for (const char c : name) {
    hash = (hash ^ static_cast<unsigned char>(c)) * kPrime;
  }
  return SplitMix64(seed * 0x10001U + hash);
}

// What a rank holds of a matrix, in its rows of the whole.
FillPlace PlaceOf(const TensorSpec& spec) {
  return {.first = spec.held_rows.first * spec.cols + spec.held_cols.first,
          .cols = std::max<std::int64_t>(spec.held_cols.count, 1),
          .stride = spec.cols};
}

// A run of the whole, from value `first` on.
FillPlace RunFrom(std::int64_t first) {
  return {.first = first, .cols = 1, .stride = 1};
}

// Deviation of fp8 values before their scale: wide enough that few round to zero, far from 448.
constexpr double kFp8Deviation = 64.0;

TensorType TypeBy(const ModelConfig& config) {
  return [&config](const TensorSpec& spec) {
    return spec.quantizable() && config.quantized ? DataType::kFp8E4m3 : config.activation_type;
  };
}

class Filler final {
 public:
  Filler(const ModelConfig& config, Backend& backend) : config_(config), backend_(backend) {}

  void Fill(const PlacedTensor& tensor, std::uint64_t seed) const {
    const TensorSpec& spec = tensor.spec;
    const RandomMoments moments = MomentsOf(spec.name, spec.cols);
    const std::int64_t size = spec.held_rows.count * spec.held_cols.count;
    std::visit(Overloaded{
                   [&](const VectorTarget&) {
                     FillRun(tensor.values, DataType::kF32, spec.rows, seed, moments, RunFrom(0));
                   },
                   [&](const MatrixTarget&) {
                     FillRun(tensor.values, tensor.type, size, seed, moments, PlaceOf(spec));
                   },
                   [&](const LinearTarget&) { FillWeight(tensor, seed, moments); },
                   [&](const ExpertTarget&) { FillWeight(tensor, seed, moments); },
                   [&](const LatentTarget&) {
                     const std::int64_t head_rows = config_.nope + config_.value;
                     const std::int64_t before = spec.held_rows.first / head_rows * kLatentWidth;
                     const std::int64_t row = spec.held_rows.count / head_rows * kLatentWidth;
                     FillRun(tensor.values, config_.activation_type, row * config_.nope, seed,
                             moments, RunFrom(before * config_.nope));
                     const FillPlace place = RunFrom(before * config_.value);
                     if (tensor.w_uv_fp8.codes != nullptr) {
                       FillValues(tensor, row * config_.value, SplitMix64(seed), moments, place);
                     } else {
                       FillRun(tensor.scales, config_.activation_type, row * config_.value,
                               SplitMix64(seed), moments, place);
                     }
                   },
               },
               spec.target);
  }

 private:
  void FillRun(void* data, DataType type, std::int64_t size, std::uint64_t seed,
               const RandomMoments& moments, const FillPlace& place) const {
    backend_.FillRandom({.data = data,
                         .type = type,
                         .size = size,
                         .seed = seed,
                         .mean = static_cast<float>(moments.mean),
                         .deviation = static_cast<float>(moments.deviation),
                         .place = place});
  }

  // W_UV as fp8, and what it is de-quantized.
  void FillValues(const PlacedTensor& tensor, std::int64_t size, std::uint64_t seed,
                  const RandomMoments& moments, const FillPlace& place) const {
    const double scale = ScaleOf(moments);
    FillRun(tensor.w_uv_fp8.scales, DataType::kF32, size / (kWeightBlock * kWeightBlock), seed,
            {.mean = scale, .deviation = 0.0}, RunFrom(0));
    FillRun(tensor.w_uv_fp8.codes, DataType::kFp8E4m3, size, seed,
            {.mean = moments.mean, .deviation = moments.deviation / scale}, place);
    std::array<Bf16, 256> values{};
    for (std::size_t i = 0; i < values.size(); ++i) {
      values.at(i) =
          ToBf16(ToFloat(Fp8E4m3{static_cast<std::uint8_t>(i)}) * static_cast<float>(scale));
    }
    std::vector<Fp8E4m3> codes(static_cast<std::size_t>(size));
    backend_.CopyToHost(codes.data(), tensor.w_uv_fp8.codes, codes.size());
    backend_.Synchronize();
    std::vector<Bf16> dequantized(codes.size());
    std::transform(codes.begin(), codes.end(), dequantized.begin(),
                   [&](Fp8E4m3 code) { return values.at(code.bits); });
    backend_.CopyToDevice(tensor.scales, dequantized.data(), dequantized.size() * sizeof(Bf16));
  }

  static double ScaleOf(const RandomMoments& moments) {
    return std::exp2(std::round(std::log2(moments.deviation / kFp8Deviation)));
  }

  // fp8 under one scale, a power of two as both scale formats have it.
  void FillWeight(const PlacedTensor& tensor, std::uint64_t seed,
                  const RandomMoments& moments) const {
    const std::int64_t rows = tensor.spec.held_rows.count;
    const std::int64_t cols = tensor.spec.held_cols.count;
    RandomMoments values = moments;
    if (tensor.type == DataType::kFp8E4m3) {
      const double scale = ScaleOf(moments);
      values.deviation = moments.deviation / scale;
      FillRun(tensor.scales, DataType::kF32, ScaleBlocks(rows) * ScaleBlocks(cols), seed,
              {.mean = scale, .deviation = 0.0}, RunFrom(0));
    }
    FillRun(tensor.values, tensor.type, rows * cols, seed, values, PlaceOf(tensor.spec));
  }

  const ModelConfig& config_;
  Backend& backend_;
};

}  // namespace

RandomMoments MomentsOf(std::string_view tensor_name, std::int64_t cols) {
  if (cols == 0) {
    return {.mean = tensor_name.ends_with("norm.weight") ? 1.0 : 0.0,
            .deviation = tensor_name.ends_with("e_score_correction_bias") ? 0.05 : 0.1};
  }
  if (tensor_name.find("embed_tokens") != std::string_view::npos) {
    return {.mean = 0.0, .deviation = 1.0};
  }
  double gain = 1.0;
  for (const auto& [part, value] : {std::pair("lm_head", 4.0), std::pair("o_proj", 0.1),
                                    std::pair("down_proj", 0.1), std::pair("mlp.gate.", 2.0)}) {
    if (tensor_name.find(part) != std::string_view::npos) {
      gain = value;
    }
  }
  return {.mean = 0.0, .deviation = gain / std::sqrt(static_cast<double>(cols))};
}

std::int64_t RandomWeightBytes(const ModelConfig& config, const RankShape& rank) {
  ModelWeights weights;
  return WeightLayout(config, rank, weights, TypeBy(config)).bytes();
}

Result<DeviceWeights> MakeRandomWeights(const ModelConfig& config, std::uint64_t seed,
                                        Backend& backend) {
  return MakeRandomWeights(config, WholeModel(config), seed, backend);
}

Result<DeviceWeights> MakeRandomWeights(const ModelConfig& config, const RankShape& rank,
                                        std::uint64_t seed, Backend& backend) {
  DeviceWeights made;
  const WeightLayout layout(config, rank, made.weights, TypeBy(config));
  DSA_ASSIGN_OR_RETURN(PlacedWeights placed, layout.Allocate(backend));
  const Filler filler(config, backend);
  for (const PlacedTensor& tensor : placed.tensors) {
    filler.Fill(tensor, SeedOf(seed, tensor.spec.name));
  }
  backend.Synchronize();
  made.buffers = std::move(placed.buffers);
  return made;
}

}  // namespace dsa
