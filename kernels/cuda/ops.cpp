// CudaBackend's ops that are a call of kernels/cuda/ops.h on its stream.
#include "kernels/cuda/ops.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/latent_attention.h"

namespace dsa {

void CudaBackend::AbsorbQuery(const AbsorbQueryParams& params) {
  cuda::AbsorbQuery(params, state_->stream);
}
void CudaBackend::AddNorm(const AddNormParams& params) {
  if (!cuda::AddNorm(params, state_->stream)) {
    Backend::AddNorm(params);
  }
}
void CudaBackend::Embed(const EmbedParams& params) {
  cuda::Embed(params, state_->stream);
}
void CudaBackend::ExpandValue(const ExpandValueParams& params) {
  cuda::ExpandValue(params, state_->stream);
}
void CudaBackend::FillRandom(const FillRandomParams& params) {
  cuda::FillRandom(params, state_->stream);
}
void CudaBackend::Gate(const GateParams& params) {
  cuda::Gate(params, state_->scratch, state_->attention_counters.As<unsigned>(), state_->stream);
}
void CudaBackend::GatherRows(const GatherRowsParams& params) {
  cuda::GatherRows(params, state_->stream);
}
void CudaBackend::IndexerLogits(const IndexerLogitsParams& params) {
  cuda::IndexerLogits(params, state_->stream);
}
void CudaBackend::LatentAttention(const LatentAttentionParams& params) {
  cuda::LatentAttention(params,
                        {.multiprocessors = state_->multiprocessors,
                         .batch_invariant = state_->batch_invariant,
                         .limits = state_->limits,
                         .scratch = state_->scratch,
                         .few_heads_parts = state_->attention_parts.As<float>(),
                         .counters = state_->attention_counters.As<unsigned>()},
                        state_->stream);
}
void CudaBackend::MaskedAttention(const MaskedAttentionParams& params) {
  cuda::MaskedAttention(params, state_->limits, state_->scratch, state_->stream);
}
void CudaBackend::PlanAttention(const PagedRows& /*rows*/, std::int64_t /*heads*/,
                                bool batch_invariant) {
  state_->batch_invariant = batch_invariant;
}
void CudaBackend::PrepareIndexerQuery(const PrepareIndexerQueryParams& params) {
  cuda::PrepareIndexerQuery(params, state_->stream);
}
void CudaBackend::QuantizeFp8(const QuantizeFp8Params& params) {
  cuda::QuantizeFp8(params, state_->stream);
}
void CudaBackend::RmsNorm(const RmsNormParams& params) {
  cuda::RmsNorm(params, state_->stream);
}
void CudaBackend::Rope(const RopeParams& params) {
  cuda::Rope(params, state_->stream);
}
void CudaBackend::RoutedExperts(const RoutedExpertsParams& params) {
  cuda::RoutedExperts(params, state_->scratch, state_->stream);
}
void CudaBackend::Sample(const SampleParams& params) {
  cuda::Sample(params, state_->stream);
}
void CudaBackend::SelectTopK(const SelectTopKParams& params) {
  cuda::SelectTopK(params, state_->stream);
}
void CudaBackend::StoreIndexerKey(const StoreIndexerKeyParams& params) {
  cuda::StoreIndexerKey(params, state_->stream);
}
void CudaBackend::StoreLatent(const StoreLatentParams& params) {
  cuda::StoreLatent(params, state_->stream);
}
void CudaBackend::SwiGlu(const SwiGluParams& params) {
  cuda::SwiGlu(params, state_->stream);
}
void CudaBackend::UpdateBlockTables(const UpdateBlockTablesParams& params) {
  cuda::UpdateBlockTables(params, state_->stream);
}
void CudaBackend::WriteKeys(const WriteKeysParams& params) {
  if (!cuda::WriteKeys(params, state_->stream)) {
    Backend::WriteKeys(params);
  }
}

}  // namespace dsa
