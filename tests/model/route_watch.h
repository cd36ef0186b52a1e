// Which experts the rows of a step were sent to: a gate that decides by a hair sends a row
// elsewhere wherever sums are added in another order, and its logits then differ by what an expert
// gives.
#pragma once

#include "common/check.h"
#include "kernels/forwarding_backend.h"
#include "kernels/fused/expert_mlp.h"
#include "model/model_config.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dsa::testing {

// Passes fused ops on as they are.
class FusedForwardingBackend : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void AddNorm(const AddNormParams& params) override { inner_.AddNorm(params); }
  void Project(const ProjectParams& params) override { inner_.Project(params); }
  void WriteKeys(const WriteKeysParams& params) override { inner_.WriteKeys(params); }
  void SelectKeys(const SelectKeysParams& params) override { inner_.SelectKeys(params); }
  void AttendLatent(const AttendLatentParams& params) override { inner_.AttendLatent(params); }
  void AttendMasked(const AttendMaskedParams& params) override { inner_.AttendMasked(params); }
  void GatedMlp(const GatedMlpParams& params) override { inner_.GatedMlp(params); }
  void ExpertMlp(const ExpertMlpParams& params) override { inner_.ExpertMlp(params); }
};

// Brings the gate's choices of each layer to the host, in recorded steps too.  Of models without
// an exchange of experts.
class RouteWatch final : public FusedForwardingBackend {
 public:
  // On the thread that `inner` is bound to.
  RouteWatch(Backend& inner, const ModelConfig& model, std::int64_t rows_max)
      : FusedForwardingBackend(inner),
        layers_(model.layers - model.dense_layers),
        per_token_(model.experts_per_token),
        layer_bytes_(static_cast<std::size_t>(rows_max * per_token_) * sizeof(std::int32_t)),
        ids_(inner.AllocateHost(static_cast<std::size_t>(layers_) * layer_bytes_).value()) {}

  void ExpertMlp(const ExpertMlpParams& params) override {
    inner_.ExpertMlp(params);
    const Matrix<std::int32_t>& experts = params.gate.experts;
    const auto bytes = static_cast<std::size_t>(experts.rows * per_token_) * sizeof(std::int32_t);
    DSA_CHECK(experts.row_stride == per_token_ && bytes <= layer_bytes_, "RouteWatch: {} rows",
              experts.rows);
    inner_.Download(ids_, static_cast<std::size_t>(calls_++ % layers_) * layer_bytes_, experts.data,
                    bytes);
  }

  // Of a row of the last step, which is done: layer by layer, those of a layer in ascending order.
  std::vector<std::int32_t> RouteOf(std::int64_t row) const {
    std::vector<std::int32_t> route;
    for (std::int64_t layer = 0; layer < layers_; ++layer) {
      const auto* const of_layer = reinterpret_cast<const std::int32_t*>(
          ids_.As<std::uint8_t>() + static_cast<std::size_t>(layer) * layer_bytes_);
      route.insert(route.end(), of_layer + row * per_token_, of_layer + (row + 1) * per_token_);
      std::sort(route.end() - per_token_, route.end());
    }
    return route;
  }

 private:
  const std::int64_t layers_;
  const std::int64_t per_token_;
  const std::size_t layer_bytes_;
  const HostBuffer ids_;
  std::int64_t calls_ = 0;
};

}  // namespace dsa::testing
