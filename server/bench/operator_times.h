// How long each operator of a step takes, by the host's clock around the call: for backends whose
// calls return when they have run, which is the CPU.  Thread of the backend.
#pragma once

#include "kernels/forwarding_backend.h"

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>

namespace dsa::bench {

// In the order of kOperatorNames.
enum class Operator : std::uint8_t {
  kEmbed,
  kGatherRows,
  kRmsNorm,
  kQuantizeFp8,
  kLinear,
  kBlockScaledLinear,
  kRope,
  kStoreLatent,
  kStoreIndexerKey,
  kPrepareIndexerQuery,
  kIndexerLogits,
  kSelectTopK,
  kAbsorbQuery,
  kLatentAttention,
  kExpandValue,
  kMaskedAttention,
  kSwiGlu,
  kGate,
  kRoutedExperts,
  kSample,
};
inline constexpr std::array<std::string_view, 20> kOperatorNames = {"embed",
                                                                    "gather_rows",
                                                                    "rms_norm",
                                                                    "quantize_fp8",
                                                                    "linear",
                                                                    "block_scaled_linear",
                                                                    "rope",
                                                                    "store_latent",
                                                                    "store_indexer_key",
                                                                    "prepare_indexer_query",
                                                                    "indexer_logits",
                                                                    "select_top_k",
                                                                    "absorb_query",
                                                                    "latent_attention",
                                                                    "expand_value",
                                                                    "masked_attention",
                                                                    "swiglu",
                                                                    "gate",
                                                                    "routed_experts",
                                                                    "sample"};

// Microseconds of each operator, summed over its calls.
using OperatorTimes = std::array<double, kOperatorNames.size()>;

class TimingBackend final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  // From now on calls are timed, from nothing; or not timed.
  void Start() {
    times_us_.fill(0);
    timing_ = true;
  }
  void Stop() { timing_ = false; }
  const OperatorTimes& times_us() const { return times_us_; }

  void Embed(const EmbedParams& params) override;
  void GatherRows(const GatherRowsParams& params) override;
  void RmsNorm(const RmsNormParams& params) override;
  void QuantizeFp8(const QuantizeFp8Params& params) override;
  void Linear(const LinearParams& params) override;
  void BlockScaledLinear(const BlockScaledLinearParams& params) override;
  void Rope(const RopeParams& params) override;
  void StoreLatent(const StoreLatentParams& params) override;
  void StoreIndexerKey(const StoreIndexerKeyParams& params) override;
  void PrepareIndexerQuery(const PrepareIndexerQueryParams& params) override;
  void IndexerLogits(const IndexerLogitsParams& params) override;
  void SelectTopK(const SelectTopKParams& params) override;
  void AbsorbQuery(const AbsorbQueryParams& params) override;
  void LatentAttention(const LatentAttentionParams& params) override;
  void ExpandValue(const ExpandValueParams& params) override;
  void MaskedAttention(const MaskedAttentionParams& params) override;
  void SwiGlu(const SwiGluParams& params) override;
  void Gate(const GateParams& params) override;
  void RoutedExperts(const RoutedExpertsParams& params) override;
  void Sample(const SampleParams& params) override;

 private:
  template <typename Params>
  void Time(Operator name, void (Backend::*call)(const Params&), const Params& params) {
    if (!timing_) {
      (inner_.*call)(params);
      return;
    }
    const auto start = std::chrono::steady_clock::now();
    (inner_.*call)(params);
    times_us_[static_cast<std::size_t>(name)] +=
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  }

  bool timing_ = false;
  OperatorTimes times_us_{};
};

}  // namespace dsa::bench
