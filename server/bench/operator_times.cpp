#include "server/bench/operator_times.h"

#include "kernels/fused/project.h"

namespace dsa::bench {
namespace {

// By the model's order: what reads the normed rows gives the narrow query latent or, alone, the
// logits; what reads the query latent has more outputs than inputs; the output projection fewer.
Operator ProjectionOf(const ProjectParams& params) {
  int weights = 0;
  for (const Projection& projection : params.projections) {
    weights += projection.weight.weight.data != nullptr ? 1 : 0;
  }
  const ConstAnyMatrix& first = params.projections[0].weight.weight;
  const bool is_logits = weights == 1 && params.projections[0].y.type == DataType::kF32;
  if (is_logits) {
    return Operator::kHead;
  }
  if (first.rows > first.cols) {
    return Operator::kProjectQuery;
  }
  return weights == 1 ? Operator::kProjectOutput : Operator::kProjectInput;
}

}  // namespace

void OperatorBackend::Zero(void* target, std::size_t bytes) {
  if (!wanted_) {
    ForwardingBackend::Zero(target, bytes);
  }
}
void OperatorBackend::UpdateBlockTables(const UpdateBlockTablesParams& params) {
  if (!wanted_) {
    ForwardingBackend::UpdateBlockTables(params);
  }
}
void OperatorBackend::Embed(const EmbedParams& params) {
  Time(Operator::kEmbed, &Backend::Embed, params);
}
void OperatorBackend::GatherRows(const GatherRowsParams& params) {
  Time(Operator::kGatherRows, &Backend::GatherRows, params);
}
void OperatorBackend::RmsNorm(const RmsNormParams& params) {
  Time(Operator::kRmsNorm, &Backend::RmsNorm, params);
}
void OperatorBackend::QuantizeFp8(const QuantizeFp8Params& params) {
  Time(Operator::kQuantizeFp8, &Backend::QuantizeFp8, params);
}
void OperatorBackend::Linear(const LinearParams& params) {
  Time(Operator::kLinear, &Backend::Linear, params);
}
void OperatorBackend::BlockScaledLinear(const BlockScaledLinearParams& params) {
  Time(Operator::kBlockScaledLinear, &Backend::BlockScaledLinear, params);
}
void OperatorBackend::Rope(const RopeParams& params) {
  Time(Operator::kRope, &Backend::Rope, params);
}
void OperatorBackend::StoreLatent(const StoreLatentParams& params) {
  Time(Operator::kStoreLatent, &Backend::StoreLatent, params);
}
void OperatorBackend::StoreIndexerKey(const StoreIndexerKeyParams& params) {
  Time(Operator::kStoreIndexerKey, &Backend::StoreIndexerKey, params);
}
void OperatorBackend::PrepareIndexerQuery(const PrepareIndexerQueryParams& params) {
  Time(Operator::kPrepareIndexerQuery, &Backend::PrepareIndexerQuery, params);
}
void OperatorBackend::IndexerLogits(const IndexerLogitsParams& params) {
  Time(Operator::kIndexerLogits, &Backend::IndexerLogits, params);
}
void OperatorBackend::SelectTopK(const SelectTopKParams& params) {
  Time(Operator::kSelectTopK, &Backend::SelectTopK, params);
}
void OperatorBackend::AbsorbQuery(const AbsorbQueryParams& params) {
  Time(Operator::kAbsorbQuery, &Backend::AbsorbQuery, params);
}
void OperatorBackend::LatentAttention(const LatentAttentionParams& params) {
  Time(Operator::kLatentAttention, &Backend::LatentAttention, params);
}
void OperatorBackend::ExpandValue(const ExpandValueParams& params) {
  Time(Operator::kExpandValue, &Backend::ExpandValue, params);
}
void OperatorBackend::MaskedAttention(const MaskedAttentionParams& params) {
  Time(Operator::kMaskedAttention, &Backend::MaskedAttention, params);
}
void OperatorBackend::SwiGlu(const SwiGluParams& params) {
  Time(Operator::kSwiGlu, &Backend::SwiGlu, params);
}
void OperatorBackend::Gate(const GateParams& params) {
  Time(Operator::kGate, &Backend::Gate, params);
}
void OperatorBackend::RoutedExperts(const RoutedExpertsParams& params) {
  Time(Operator::kRoutedExperts, &Backend::RoutedExperts, params);
}
void OperatorBackend::Sample(const SampleParams& params) {
  Time(Operator::kSample, &Backend::Sample, params);
}
void OperatorBackend::AddNorm(const AddNormParams& params) {
  if (fused_) {
    Time(Operator::kAddNorm, &Backend::AddNorm, params);
  } else {
    ForwardingBackend::AddNorm(params);
  }
}
void OperatorBackend::Project(const ProjectParams& params) {
  if (fused_) {
    Time(ProjectionOf(params), &Backend::Project, params);
  } else {
    ForwardingBackend::Project(params);
  }
}
void OperatorBackend::WriteKeys(const WriteKeysParams& params) {
  if (key_listener_) {
    key_listener_(params);
  }
  if (fused_) {
    Time(Operator::kWriteKeys, &Backend::WriteKeys, params);
  } else {
    ForwardingBackend::WriteKeys(params);
  }
}
void OperatorBackend::SelectKeys(const SelectKeysParams& params) {
  if (fused_) {
    Time(Operator::kSelectKeys, &Backend::SelectKeys, params);
  } else {
    ForwardingBackend::SelectKeys(params);
  }
}
void OperatorBackend::AttendLatent(const AttendLatentParams& params) {
  if (fused_) {
    Time(Operator::kAttend, &Backend::AttendLatent, params);
  } else {
    ForwardingBackend::AttendLatent(params);
  }
}
void OperatorBackend::AttendMasked(const AttendMaskedParams& params) {
  if (fused_) {
    Time(Operator::kAttend, &Backend::AttendMasked, params);
  } else {
    ForwardingBackend::AttendMasked(params);
  }
}
void OperatorBackend::GatedMlp(const GatedMlpParams& params) {
  if (fused_) {
    Time(Operator::kGatedMlp, &Backend::GatedMlp, params);
  } else {
    ForwardingBackend::GatedMlp(params);
  }
}
void OperatorBackend::ExpertMlp(const ExpertMlpParams& params) {
  if (fused_) {
    Time(Operator::kExpertMlp, &Backend::ExpertMlp, params);
  } else {
    ForwardingBackend::ExpertMlp(params);
  }
}

}  // namespace dsa::bench
