// Holds the plain ops of one backend to those of another, op by op, on a model that both run.
//
// OpTrace runs on the backend that is right and keeps what every op writes.  OpCheck runs the same
// steps on the other one: it compares what each op wrote with the trace and puts the traced values
// in its place, so that every op starts from equal operands and a fault does not spread.  Fused ops
// have their default bodies.  For the start-up self-test; each output is copied to the host.
#pragma once

#include "kernels/forwarding_backend.h"
#include "kernels/written_values.h"

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace dsa {

// One op of a run, in order.
struct TracedOp {
  std::string op;  // "LatentAttention"
  WrittenBytes bytes;
};

// Calls OnWritten behind every plain op of a step.
class WatchingBackend : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

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

 protected:
  virtual void OnWritten(std::string_view op, const WrittenList& written) = 0;

 private:
  template <typename Params>
  void Run(std::string_view op, void (Backend::*method)(const Params&), const Params& params,
           const WrittenList& written);
};

class OpTrace final : public WatchingBackend {
 public:
  using WatchingBackend::WatchingBackend;
  const std::vector<TracedOp>& ops() const { return ops_; }

 private:
  void OnWritten(std::string_view op, const WrittenList& written) override;

  std::vector<TracedOp> ops_;
};

// One output of an op, in one call.
struct OpDifference {
  std::string op;
  std::string output;
  OutputDifference difference;
};

class OpCheck final : public WatchingBackend {
 public:
  // `trace` outlives it.
  OpCheck(Backend& inner, const std::vector<TracedOp>& trace)
      : WatchingBackend(inner), trace_(trace) {}

  // Of every output of every call so far, in order.  CHECK-fails before that, in the run, where the
  // ops are not those of the trace.
  const std::vector<OpDifference>& differences() const { return differences_; }

 private:
  void OnWritten(std::string_view op, const WrittenList& written) override;

  const std::vector<TracedOp>& trace_;
  std::size_t next_ = 0;
  std::vector<OpDifference> differences_;
};

}  // namespace dsa
