// How long each operator of a step takes, and what it is called.
//
// Where calls return when they have run, which is on the CPU, by the host's clock around each plain
// op of real steps.  On a device, where fused ops have kernels of their own, by leaving out all
// others: a step recorded with one op alone and replayed (StepRunner).  Thread of the backend.
#pragma once

#include "common/clock.h"
#include "kernels/forwarding_backend.h"

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>

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
  // Fused, of a device.
  kAddNorm,
  kProjectInput,  // query latent, latent and index keys, the indexer's head weights
  kWriteKeys,
  kProjectQuery,
  kSelectKeys,
  kAttend,
  kProjectOutput,
  kGatedMlp,
  kExpertMlp,
  kHead,
};
inline constexpr std::array<std::string_view, 30> kOperatorNames = {"embed",
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
                                                                    "sample",
                                                                    "add_norm",
                                                                    "project_input",
                                                                    "write_keys",
                                                                    "project_query",
                                                                    "select_keys",
                                                                    "attend",
                                                                    "project_output",
                                                                    "gated_mlp",
                                                                    "expert_mlp",
                                                                    "head"};

// Microseconds of each operator, summed over its calls.
using OperatorTimes = std::array<double, kOperatorNames.size()>;

class OperatorBackend final : public ForwardingBackend {
 public:
  // `fused`: fused ops are passed on whole, else as the plain ops that define them.
  OperatorBackend(Backend& inner, bool fused, const Clock& clock)
      : ForwardingBackend(inner), fused_(fused), clock_(clock) {}

  bool fused() const { return fused_; }

  // From now on calls are timed, from nothing; or not timed.
  void Start() {
    times_us_.fill(0);
    timing_ = true;
  }
  void Stop() { timing_ = false; }
  const OperatorTimes& times_us() const { return times_us_; }

  // From now on this op alone is passed on, and nothing that is no op of the model; or everything.
  void Only(std::optional<Operator> wanted) {
    wanted_ = wanted;
    calls_ = 0;
  }
  int calls() const { return calls_; }  // passed on since

  // Called before every WriteKeys.
  void SetKeyListener(std::function<void(const WriteKeysParams&)> listener) {
    key_listener_ = std::move(listener);
  }

  void Zero(void* target, std::size_t bytes) override;
  void UpdateBlockTables(const UpdateBlockTablesParams& params) override;
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
  void AddNorm(const AddNormParams& params) override;
  void Project(const ProjectParams& params) override;
  void WriteKeys(const WriteKeysParams& params) override;
  void SelectKeys(const SelectKeysParams& params) override;
  void AttendLatent(const AttendLatentParams& params) override;
  void AttendMasked(const AttendMaskedParams& params) override;
  void GatedMlp(const GatedMlpParams& params) override;
  void ExpertMlp(const ExpertMlpParams& params) override;

 private:
  template <typename Params>
  void Time(Operator name, void (Backend::*call)(const Params&), const Params& params) {
    if (wanted_ && *wanted_ != name) {
      return;
    }
    ++calls_;
    if (!timing_) {
      (inner_.*call)(params);
      return;
    }
    const MonotonicUs start = clock_.NowUs();
    (inner_.*call)(params);
    times_us_[static_cast<std::size_t>(name)] += static_cast<double>(clock_.NowUs() - start);
  }

  const bool fused_;
  const Clock& clock_;
  bool timing_ = false;
  std::optional<Operator> wanted_;
  int calls_ = 0;
  OperatorTimes times_us_{};
  std::function<void(const WriteKeysParams&)> key_listener_;
};

}  // namespace dsa::bench
