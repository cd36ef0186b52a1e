#include "model/random_weights.h"

#include "common/overloaded.h"
#include "common/prng.h"
#include "kernels/ops/fill_random.h"
#include "model/weight_layout.h"

#include <cmath>
#include <utility>
#include <variant>

namespace dsa {
namespace {

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
    std::visit(
        Overloaded{
            [&](const VectorTarget&) {
              FillRun(tensor.values, DataType::kF32, spec.rows, seed, moments);
            },
            [&](const MatrixTarget&) { FillRun(tensor.values, tensor.type, size, seed, moments); },
            [&](const LinearTarget&) { FillWeight(tensor, seed, moments); },
            [&](const ExpertTarget&) { FillWeight(tensor, seed, moments); },
            [&](const LatentTarget&) {
              const std::int64_t heads = spec.held_rows.count / (config_.nope + config_.value);
              const std::int64_t row = heads * kLatentWidth;
              FillRun(tensor.values, config_.activation_type, row * config_.nope, seed, moments);
              FillRun(tensor.scales, config_.activation_type, row * config_.value, SplitMix64(seed),
                      moments);
            },
        },
        spec.target);
  }

 private:
  void FillRun(void* data, DataType type, std::int64_t size, std::uint64_t seed,
               const RandomMoments& moments) const {
    backend_.FillRandom({.data = data,
                         .type = type,
                         .size = size,
                         .seed = seed,
                         .mean = static_cast<float>(moments.mean),
                         .deviation = static_cast<float>(moments.deviation)});
  }

  // fp8 under one scale, a power of two as both scale formats have it.
  void FillWeight(const PlacedTensor& tensor, std::uint64_t seed,
                  const RandomMoments& moments) const {
    const std::int64_t rows = tensor.spec.held_rows.count;
    const std::int64_t cols = tensor.spec.held_cols.count;
    RandomMoments values = moments;
    if (tensor.type == DataType::kFp8E4m3) {
      const double scale = std::exp2(std::round(std::log2(moments.deviation / kFp8Deviation)));
      values.deviation = moments.deviation / scale;
      FillRun(tensor.scales, DataType::kF32, ScaleBlocks(rows) * ScaleBlocks(cols), seed,
              {.mean = scale, .deviation = 0.0});
    }
    FillRun(tensor.values, tensor.type, rows * cols, seed, values);
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
  std::uint64_t index = 0;
  for (const PlacedTensor& tensor : placed.tensors) {
    const TensorSpec& spec = tensor.spec;
    const bool split =
        spec.held_rows.count != spec.rows || (spec.cols > 0 && spec.held_cols.count != spec.cols);
    const std::uint64_t part = split ? static_cast<std::uint64_t>(rank.rank) << 32U : 0;
    filler.Fill(tensor, SplitMix64(seed * 0x10001U + index + part));
    ++index;
  }
  backend.Synchronize();
  made.buffers = std::move(placed.buffers);
  return made;
}

}  // namespace dsa
