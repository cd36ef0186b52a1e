#include "kernels/op_trace.h"

#include "common/check.h"
#include "common/view_parts.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/embed.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/gather_rows.h"
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/masked_attention.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"
#include "kernels/ops/routed_experts.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/select_top_k.h"
#include "kernels/ops/store_indexer_key.h"
#include "kernels/ops/store_latent.h"
#include "kernels/ops/swiglu.h"

namespace dsa {
namespace {

// Of each row the scores of its visible keys; the others are not written.
void AddVisible(WrittenList& written, Backend& backend, const IndexerLogitsParams& params) {
  std::int64_t row = 0;
  for (const std::int32_t position : ReadVector(backend, params.rows.positions)) {
    Matrix<float> visible = RowsOf(params.scores, row++, 1);
    visible.cols = position + 1;
    AddMatrix(written, "scores", AsAny(visible));
  }
}

}  // namespace

template <typename Params>
void WatchingBackend::Run(std::string_view op, void (Backend::*method)(const Params&),
                          const Params& params, const WrittenList& written) {
  (inner_.*method)(params);
  OnWritten(op, written);
}

void OpTrace::OnWritten(std::string_view op, const WrittenList& written) {
  ops_.push_back({.op = std::string(op), .bytes = ReadBack(inner_, written)});
}

void OpCheck::OnWritten(std::string_view op, const WrittenList& written) {
  DSA_CHECK(next_ < trace_.size(), "OpCheck: {} follows the {} ops of the trace", op,
            trace_.size());
  const TracedOp& traced = trace_[next_++];
  DSA_CHECK(traced.op == op && traced.bytes.size() == written.size(),
            "OpCheck: op {} is {} with {} outputs, in the trace {} with {}", next_ - 1, op,
            written.size(), std::string_view(traced.op), traced.bytes.size());
  for (const auto& [output, difference] :
       CompareOutputs(written, ReadBack(inner_, written), traced.bytes)) {
    differences_.push_back({.op = traced.op, .output = output, .difference = difference});
  }
  PutBack(inner_, written, traced.bytes);
}

// What each op writes, work memory apart.

void WatchingBackend::Embed(const EmbedParams& params) {
  WrittenList written;
  AddMatrix(written, "x", params.x);
  Run("Embed", &Backend::Embed, params, written);
}

void WatchingBackend::GatherRows(const GatherRowsParams& params) {
  WrittenList written;
  AddMatrix(written, "y", params.y);
  Run("GatherRows", &Backend::GatherRows, params, written);
}

void WatchingBackend::RmsNorm(const RmsNormParams& params) {
  WrittenList written;
  AddMatrix(written, "residual", params.residual);
  AddMatrix(written, "y", params.y);
  Run("RmsNorm", &Backend::RmsNorm, params, written);
}

void WatchingBackend::QuantizeFp8(const QuantizeFp8Params& params) {
  WrittenList written;
  AddActivation(
      written, "",
      {.x = NullMatrix(DataType::kF32),
       .fp8 = {.values = params.values, .scales = params.scales, .format = params.scale_format}});
  Run("QuantizeFp8", &Backend::QuantizeFp8, params, written);
}

void WatchingBackend::Linear(const LinearParams& params) {
  WrittenList written;
  AddMatrix(written, "y", params.y);
  Run("Linear", &Backend::Linear, params, written);
}

void WatchingBackend::BlockScaledLinear(const BlockScaledLinearParams& params) {
  WrittenList written;
  AddMatrix(written, "y", params.y);
  Run("BlockScaledLinear", &Backend::BlockScaledLinear, params, written);
}

void WatchingBackend::Rope(const RopeParams& params) {
  WrittenList written;
  AddTensor(written, "x", params.x);
  Run("Rope", &Backend::Rope, params, written);
}

void WatchingBackend::StoreLatent(const StoreLatentParams& params) {
  WrittenList written;
  AddLatents(written, inner_, params.cache, params.slots);
  Run("StoreLatent", &Backend::StoreLatent, params, written);
}

void WatchingBackend::StoreIndexerKey(const StoreIndexerKeyParams& params) {
  WrittenList written;
  AddIndexerKeys(written, inner_, params.cache, params.slots);
  Run("StoreIndexerKey", &Backend::StoreIndexerKey, params, written);
}

void WatchingBackend::PrepareIndexerQuery(const PrepareIndexerQueryParams& params) {
  WrittenList written;
  AddTensor(written, "queries", params.queries);
  AddMatrix(written, "query scales", AsAny(params.weights));
  Run("PrepareIndexerQuery", &Backend::PrepareIndexerQuery, params, written);
}

void WatchingBackend::IndexerLogits(const IndexerLogitsParams& params) {
  WrittenList written;
  AddVisible(written, inner_, params);
  Run("IndexerLogits", &Backend::IndexerLogits, params, written);
}

void WatchingBackend::SelectTopK(const SelectTopKParams& params) {
  WrittenList written;
  AddExact(written, "slots", params.slots);
  AddExact(written, "mask", params.mask);
  AddExact(written, "counts", params.counts);
  AddExact(written, "faults", params.faults);
  Run("SelectTopK", &Backend::SelectTopK, params, written);
}

void WatchingBackend::AbsorbQuery(const AbsorbQueryParams& params) {
  WrittenList written;
  AddTensor(written, "q_latent", params.q_latent);
  Run("AbsorbQuery", &Backend::AbsorbQuery, params, written);
}

void WatchingBackend::LatentAttention(const LatentAttentionParams& params) {
  WrittenList written;
  AddTensor(written, "o_latent", params.o_latent);
  Run("LatentAttention", &Backend::LatentAttention, params, written);
}

void WatchingBackend::ExpandValue(const ExpandValueParams& params) {
  WrittenList written;
  AddTensor(written, "o", params.o);
  Run("ExpandValue", &Backend::ExpandValue, params, written);
}

void WatchingBackend::MaskedAttention(const MaskedAttentionParams& params) {
  WrittenList written;
  AddTensor(written, "o", params.o);
  Run("MaskedAttention", &Backend::MaskedAttention, params, written);
}

void WatchingBackend::SwiGlu(const SwiGluParams& params) {
  WrittenList written;
  AddMatrix(written, "y", params.y);
  Run("SwiGlu", &Backend::SwiGlu, params, written);
}

void WatchingBackend::Gate(const GateParams& params) {
  WrittenList written;
  AddExact(written, "experts", params.experts);
  AddMatrix(written, "weights", AsAny(params.weights));
  Run("Gate", &Backend::Gate, params, written);
}

void WatchingBackend::RoutedExperts(const RoutedExpertsParams& params) {
  WrittenList written;
  AddMatrix(written, "y", params.y);
  Run("RoutedExperts", &Backend::RoutedExperts, params, written);
}

void WatchingBackend::Sample(const SampleParams& params) {
  WrittenList written;
  AddExact(written, "tokens", params.tokens);
  AddExact(written, "faults", params.faults);
  Run("Sample", &Backend::Sample, params, written);
}

}  // namespace dsa
