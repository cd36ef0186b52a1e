#include "server/bench/operator_times.h"

namespace dsa::bench {

void TimingBackend::Embed(const EmbedParams& params) {
  Time(Operator::kEmbed, &Backend::Embed, params);
}
void TimingBackend::GatherRows(const GatherRowsParams& params) {
  Time(Operator::kGatherRows, &Backend::GatherRows, params);
}
void TimingBackend::RmsNorm(const RmsNormParams& params) {
  Time(Operator::kRmsNorm, &Backend::RmsNorm, params);
}
void TimingBackend::QuantizeFp8(const QuantizeFp8Params& params) {
  Time(Operator::kQuantizeFp8, &Backend::QuantizeFp8, params);
}
void TimingBackend::Linear(const LinearParams& params) {
  Time(Operator::kLinear, &Backend::Linear, params);
}
void TimingBackend::BlockScaledLinear(const BlockScaledLinearParams& params) {
  Time(Operator::kBlockScaledLinear, &Backend::BlockScaledLinear, params);
}
void TimingBackend::Rope(const RopeParams& params) {
  Time(Operator::kRope, &Backend::Rope, params);
}
void TimingBackend::StoreLatent(const StoreLatentParams& params) {
  Time(Operator::kStoreLatent, &Backend::StoreLatent, params);
}
void TimingBackend::StoreIndexerKey(const StoreIndexerKeyParams& params) {
  Time(Operator::kStoreIndexerKey, &Backend::StoreIndexerKey, params);
}
void TimingBackend::PrepareIndexerQuery(const PrepareIndexerQueryParams& params) {
  Time(Operator::kPrepareIndexerQuery, &Backend::PrepareIndexerQuery, params);
}
void TimingBackend::IndexerLogits(const IndexerLogitsParams& params) {
  Time(Operator::kIndexerLogits, &Backend::IndexerLogits, params);
}
void TimingBackend::SelectTopK(const SelectTopKParams& params) {
  Time(Operator::kSelectTopK, &Backend::SelectTopK, params);
}
void TimingBackend::AbsorbQuery(const AbsorbQueryParams& params) {
  Time(Operator::kAbsorbQuery, &Backend::AbsorbQuery, params);
}
void TimingBackend::LatentAttention(const LatentAttentionParams& params) {
  Time(Operator::kLatentAttention, &Backend::LatentAttention, params);
}
void TimingBackend::ExpandValue(const ExpandValueParams& params) {
  Time(Operator::kExpandValue, &Backend::ExpandValue, params);
}
void TimingBackend::MaskedAttention(const MaskedAttentionParams& params) {
  Time(Operator::kMaskedAttention, &Backend::MaskedAttention, params);
}
void TimingBackend::SwiGlu(const SwiGluParams& params) {
  Time(Operator::kSwiGlu, &Backend::SwiGlu, params);
}
void TimingBackend::Gate(const GateParams& params) {
  Time(Operator::kGate, &Backend::Gate, params);
}
void TimingBackend::RoutedExperts(const RoutedExpertsParams& params) {
  Time(Operator::kRoutedExperts, &Backend::RoutedExperts, params);
}
void TimingBackend::Sample(const SampleParams& params) {
  Time(Operator::kSample, &Backend::Sample, params);
}

}  // namespace dsa::bench
