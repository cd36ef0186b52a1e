#include "tests/model/planted_faults.h"

#include "kernels/forwarding_backend.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/store_latent.h"
#include "tests/model/indexer_faults.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

namespace dsa::testing {
namespace {

float ReadAt(const ConstAnyMatrix& matrix, std::int64_t row, std::int64_t col) {
  const std::int64_t at = row * matrix.row_stride + col;
  return matrix.type == DataType::kF32 ? static_cast<const float*>(matrix.data)[at]
                                       : ToFloat(static_cast<const Bf16*>(matrix.data)[at]);
}

void WriteAt(const AnyMatrix& matrix, std::int64_t row, std::int64_t col, float value) {
  const std::int64_t at = row * matrix.row_stride + col;
  if (matrix.type == DataType::kF32) {
    static_cast<float*>(matrix.data)[at] = value;
  } else {
    static_cast<Bf16*>(matrix.data)[at] = ToBf16(value);
  }
}

class WrongMlaRope final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void Rope(const RopeParams& params) override {
    RopeParams wrong = params;
    wrong.layout = OtherLayout(params.layout);
    inner_.Rope(wrong);
  }
  void StoreLatent(const StoreLatentParams& params) override {
    StoreLatentParams wrong = params;
    wrong.layout = OtherLayout(params.layout);
    inner_.StoreLatent(wrong);
  }
};

// Keeps bfloat16 latents beside the fp8 cache and attends to those.
class UnquantizedLatent final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void StoreLatent(const StoreLatentParams& params) override {
    inner_.StoreLatent(params);
    StoreLatentParams shadow = params;
    shadow.cache = Shadow(params.cache);
    inner_.StoreLatent(shadow);
  }
  void LatentAttention(const LatentAttentionParams& params) override {
    LatentAttentionParams shadow = params;
    shadow.cache = Shadow(params.cache);
    inner_.LatentAttention(shadow);
  }

 private:
  LatentCacheView Shadow(const LatentCacheView& cache) {
    std::vector<std::uint8_t>& bytes = shadows_[cache.data];
    bytes.resize(static_cast<std::size_t>(cache.blocks * kTokensPerBlock *
                                          LatentTokenBytes(KvFormat::kBf16)));
    return {.data = bytes.data(), .blocks = cache.blocks, .format = KvFormat::kBf16};
  }
  std::map<const void*, std::vector<std::uint8_t>> shadows_;
};

class SharedExpertScaled final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void RoutedExperts(const RoutedExpertsParams& params) override {
    // y aliases shared here, so it may be written.
    for (std::int64_t row = 0; row < params.shared.rows; ++row) {
      for (std::int64_t col = 0; col < params.shared.cols; ++col) {
        WriteAt(params.y, row, col, ReadAt(params.shared, row, col) * 2.5F);
      }
    }
    inner_.RoutedExperts(params);
  }
};

// Losing groups are masked with 0 instead of -inf, as in some public code.
class ZeroMaskedGroups final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void Gate(const GateParams& params) override {
    for (std::int64_t row = 0; row < params.x.rows; ++row) {
      GateRow(params, row);
    }
  }

 private:
  static void GateRow(const GateParams& params, std::int64_t row) {
    const std::int64_t experts = params.weight.rows;
    const std::int64_t group_size = experts / params.groups;
    std::vector<float> scores;
    std::vector<float> biased;
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      double sum = 0;
      for (std::int64_t i = 0; i < params.x.cols; ++i) {
        sum += static_cast<double>(ReadAt(params.x, row, i)) * ReadAt(params.weight, expert, i);
      }
      scores.push_back(1.0F / (1.0F + std::exp(-static_cast<float>(sum))));
      biased.push_back(scores.back() + params.bias.data[expert]);
    }
    std::vector<float> group_scores;
    for (std::int64_t group = 0; group < params.groups; ++group) {
      std::vector<float> members(biased.begin() + group * group_size,
                                 biased.begin() + (group + 1) * group_size);
      std::sort(members.rbegin(), members.rend());
      group_scores.push_back(members[0] + members[1]);
    }
    const std::vector<std::int64_t> groups = Best(group_scores, params.groups_kept);
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      if (std::find(groups.begin(), groups.end(), expert / group_size) == groups.end()) {
        biased[static_cast<std::size_t>(expert)] = 0.0F;
      }
    }
    const std::vector<std::int64_t> chosen = Best(biased, params.experts.cols);
    float sum = 0;
    for (const std::int64_t expert : chosen) {
      sum += scores[static_cast<std::size_t>(expert)];
    }
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      params.experts.Row(row)[i] = static_cast<std::int32_t>(chosen[i]);
      params.weights.Row(row)[i] = scores[static_cast<std::size_t>(chosen[i])] /
                                   (params.normalize ? sum : 1.0F) * params.scale;
    }
  }

  static std::vector<std::int64_t> Best(const std::vector<float>& values, std::int64_t count) {
    std::vector<std::int64_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
    });
    order.resize(static_cast<std::size_t>(count));
    return order;
  }
};

// The sum is rounded before it is normalised, not only when it is stored.
class EarlyRoundedResidual final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void RmsNorm(const RmsNormParams& params) override {
    if (params.residual.data == nullptr) {
      inner_.RmsNorm(params);
      return;
    }
    for (std::int64_t row = 0; row < params.x.rows; ++row) {
      for (std::int64_t col = 0; col < params.x.cols; ++col) {
        WriteAt(params.residual, row, col,
                ReadAt(params.x, row, col) + ReadAt(params.residual, row, col));
      }
    }
    RmsNormParams rounded = params;
    rounded.x = params.residual;
    rounded.residual.data = nullptr;
    inner_.RmsNorm(rounded);
  }
};

template <typename T>
std::unique_ptr<Backend> Wrap(Backend& inner) {
  return std::make_unique<T>(inner);
}

// Memory that changed weights point to: as long as the process.
std::vector<float>& Keep(std::vector<float> values) {
  static std::vector<std::unique_ptr<std::vector<float>>> kept;
  return *kept.emplace_back(std::make_unique<std::vector<float>>(std::move(values)));
}

void ZeroVector(Vector<const float>& vector) {
  vector.data = Keep(std::vector<float>(static_cast<std::size_t>(vector.size), 0.0F)).data();
}

void IgnoreScales(LinearWeight& weight) {
  const auto size = static_cast<std::size_t>(weight.scales.rows * weight.scales.row_stride);
  weight.scales.data = Keep(std::vector<float>(size, 1.0F)).data();
}

}  // namespace

std::vector<PlantedFault> PlantedFaults() {
  const std::vector<std::string> every_dsa = {"v32_f32", "v32_bf16", "v32_fp8", "glm_fp8",
                                              "v32_fp8_odd"};
  std::vector<PlantedFault> faults;
  faults.push_back({.name = "DSA off", .cases = every_dsa, .attention = AttentionMode::kDense});
  faults.push_back({.name = "top-k less one", .cases = every_dsa, .change_model = [](TestModel& m) {
                      m.config.index_topk -= 1;
                    }});
  faults.push_back(
      {.name = "MLA RoPE half-split", .cases = every_dsa, .wrap_backend = Wrap<WrongMlaRope>});
  faults.push_back({.name = "indexer RoPE of the other layout",
                    .cases = every_dsa,
                    .change_model = [](TestModel& m) {
                      m.config.index_rope_layout = OtherLayout(m.config.index_rope_layout);
                    }});
  faults.push_back({.name = "no Hadamard on the query side",
                    .cases = {"v32_fp8", "glm_fp8", "v32_fp8_odd"},
                    .wrap_backend = WithoutQueryHadamard});
  faults.push_back(
      {.name = "k_norm bias dropped", .cases = every_dsa, .change_model = [](TestModel& m) {
         for (LayerWeights& layer : m.weights().layers) {
           ZeroVector(layer.indexer->k_norm_bias);
         }
       }});
  faults.push_back(
      {.name = "gate bias dropped", .cases = every_dsa, .change_model = [](TestModel& m) {
         for (LayerWeights& layer : m.weights().layers) {
           if (layer.moe) {
             ZeroVector(layer.moe->gate_bias);
           }
         }
       }});
  faults.push_back({.name = "latent not quantized",
                    .cases = {"v32_fp8", "glm_fp8", "v32_fp8_odd"},
                    .wrap_backend = Wrap<UnquantizedLatent>});
  faults.push_back({.name = "scale_inv ignored",
                    .cases = {"v32_fp8", "glm_fp8", "v32_fp8_odd"},
                    .change_model = [](TestModel& m) {
                      for (LayerWeights& layer : m.weights().layers) {
                        IgnoreScales(layer.attention.o);
                      }
                    }});
  faults.push_back({.name = "shared expert scaled",
                    .cases = every_dsa,
                    .wrap_backend = Wrap<SharedExpertScaled>});
  faults.push_back({.name = "softmax scale without YaRN's factor",
                    .cases = {"v32_f32", "v32_bf16", "v32_fp8", "v32_fp8_odd"},
                    .change_model = [](TestModel& m) {
                      m.config.softmax_scale =
                          1.0F / std::sqrt(static_cast<float>(m.config.nope + kRopeWidth));
                    }});
  faults.push_back({.name = "losing groups masked with 0",
                    .cases = {"v32_f32_biased"},
                    .wrap_backend = Wrap<ZeroMaskedGroups>});
  faults.push_back({.name = "residual rounded early",
                    .cases = {"v32_bf16", "v32_fp8", "glm_fp8", "v32_fp8_odd"},
                    .wrap_backend = Wrap<EarlyRoundedResidual>});
  return faults;
}

}  // namespace dsa::testing
