#include "bench/cuda/step_sections.h"

#include "kernels/fused/add_norm.h"
#include "kernels/fused/attend.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"
#include "kernels/fused/select_keys.h"
#include "kernels/fused/write_keys.h"
#include "kernels/ops/embed.h"
#include "kernels/ops/gather_rows.h"
#include "kernels/ops/sample.h"

#include <algorithm>

namespace dsa::bench {
namespace {

double BytesOf(const ConstAnyMatrix& matrix) {
  return static_cast<double>(matrix.rows * matrix.cols * SizeOf(matrix.type));
}

void AddProduct(SectionWork& work, std::int64_t rows, const LinearWeight& weight) {
  const double flops = 2.0 * static_cast<double>(rows) *
                       static_cast<double>(weight.weight.rows * weight.weight.cols);
  (weight.quantized() ? work.fp8_flops : work.bf16_flops) += flops;
  work.bytes +=
      BytesOf(weight.weight) + 4.0 * static_cast<double>(weight.scales.rows * weight.scales.cols);
}

void AddMlp(SectionWork& work, const GatedMlpParams& params) {
  for (const LinearWeight& weight : {params.gate, params.up, params.down}) {
    AddProduct(work, params.x.x.rows, weight);
  }
  work.bytes += BytesOf(params.x.x) / 2.0 + BytesOf(params.y);  // x as fp8
}

SectionWork WorkOf(const AttendParams& params, const StepKeys& step) {
  const auto rows = static_cast<double>(params.q.rows);
  const auto heads = static_cast<double>(params.q.heads);
  const double keys =
      params.selection.slots.data == nullptr
          ? step.visible
          : std::min(step.visible, static_cast<double>(params.selection.slots.cols));
  constexpr double kRecord = kLatentValues + kLatentRopeValues;
  const auto head_values =
      static_cast<double>(params.w_uk.heads + params.w_uv.heads) * kLatentValues;
  const DataType value_type =
      params.w_uv_fp8.values.data == nullptr ? params.w_uv.type : params.w_uv_fp8.values.type;
  const auto weight_bytes = static_cast<double>(
      (params.w_uk.heads * SizeOf(params.w_uk.type) + params.w_uv.heads * SizeOf(value_type)) *
      kLatentValues);
  return {.bytes = heads * weight_bytes +
                   std::min(rows * keys, step.distinct) *
                       static_cast<double>(LatentTokenBytes(params.cache.format)) +
                   static_cast<double>(params.q.rows * params.q.heads * params.q.cols * 2) +
                   BytesOf(params.o.x) * 1.5,
          .bf16_flops = 2.0 * rows * heads * (head_values + keys * (kRecord + kLatentValues))};
}

// Of the expanded form: the keys and values of every head once, then every visible pair.
SectionWork ExpandedWorkOf(const AttendParams& params, const StepKeys& step) {
  const auto rows = static_cast<double>(params.q.rows);
  const auto heads = static_cast<double>(params.q.heads);
  const auto values = static_cast<double>(params.w_uk.heads + params.w_uv.heads);
  const double head_values = values * kLatentValues;
  return {.bytes = heads * head_values * static_cast<double>(SizeOf(params.w_uk.type)) +
                   step.distinct * static_cast<double>(LatentTokenBytes(params.cache.format)) +
                   static_cast<double>(params.q.rows * params.q.heads * params.q.cols * 2) +
                   BytesOf(params.o.x) * 1.5,
          .bf16_flops = 2.0 * heads *
                        (step.distinct * head_values +
                         rows * step.visible * (values + static_cast<double>(kLatentRopeValues)))};
}

}  // namespace

bool SectionBackend::Takes(Section section, const SectionWork& work) {
  SectionWork& sum = works_.at(Index(section));
  ++sum.calls;
  sum.bytes += work.bytes;
  sum.fp8_flops += work.fp8_flops;
  sum.bf16_flops += work.bf16_flops;
  floors_us_.at(Index(section)) +=
      std::max(work.bytes / ceilings_.copy_bytes,
               work.fp8_flops / ceilings_.fp8_flops + work.bf16_flops / ceilings_.bf16_flops);
  return !wanted_ || *wanted_ == section;
}

void SectionBackend::Embed(const EmbedParams& params) {
  if (Takes(Section::kEmbed, {.bytes = 2.0 * BytesOf(params.x)})) {
    inner_.Embed(params);
  }
}

void SectionBackend::GatherRows(const GatherRowsParams& params) {
  if (Takes(Section::kEmbed, {.bytes = 2.0 * BytesOf(params.y)})) {
    inner_.GatherRows(params);
  }
}

void SectionBackend::Sample(const SampleParams& params) {
  const double logits = 4.0 * static_cast<double>(params.logits.rows * params.logits.cols);
  if (Takes(Section::kSample, {.bytes = logits})) {
    inner_.Sample(params);
  }
}

void SectionBackend::AddNorm(const AddNormParams& params) {
  const double x = BytesOf(params.x);
  const double residual = params.residual.data == nullptr ? 0.0 : 2.0 * x;
  const double fp8 = params.y.fp8.values.data == nullptr ? 0.0 : 0.5 * x;
  if (Takes(Section::kAddNorm, {.bytes = 2.0 * x + residual + fp8})) {
    inner_.AddNorm(params);
  }
}

// By the model's order: what reads the normed rows gives the narrow query latent or, alone, the
// logits; what reads the query latent has more outputs than inputs; the output projection fewer.
void SectionBackend::Project(const ProjectParams& params) {
  SectionWork work;
  int weights = 0;
  for (const Projection& projection : params.projections) {
    if (projection.weight.weight.data != nullptr) {
      AddProduct(work, params.x.x.rows, projection.weight);
      work.bytes += BytesOf(projection.y);
      ++weights;
    }
  }
  work.bytes += BytesOf(params.x.x) / 2.0;
  const ConstAnyMatrix& first = params.projections[0].weight.weight;
  const bool is_wide = first.rows > first.cols;
  Section section = Section::kInputProjection;
  if (weights == 1) {
    section = is_wide ? Section::kHead : Section::kOutputProjection;
  } else if (is_wide) {
    section = Section::kQueryProjection;
  }
  if (Takes(section, work)) {
    inner_.Project(params);
  }
}

void SectionBackend::WriteKeys(const WriteKeysParams& params) {
  double bytes = 2.5 * BytesOf(params.query_latent.x) + BytesOf(params.latent.kv) * 1.6;
  if (params.indexer_key) {
    bytes += 1.5 * BytesOf(params.indexer_key->k);
  }
  if (Takes(Section::kWriteKeys, {.bytes = bytes})) {
    inner_.WriteKeys(params);
  }
}

void SectionBackend::SelectKeys(const SelectKeysParams& params) {
  const auto rows = static_cast<double>(params.q.rows);
  const auto query = static_cast<double>(params.q.heads * params.q.cols);
  const double flops = 2.0 * rows * keys_.visible * query;
  const bool is_fp8 = params.cache.format == KvFormat::kFp8;
  if (Takes(Section::kSelectKeys,
            {.bytes = keys_.distinct * static_cast<double>(IndexerTokenBytes(params.cache.format)) +
                      rows * (2.0 * query + 4.0 * static_cast<double>(params.k)),
             .fp8_flops = is_fp8 ? flops : 0.0,
             .bf16_flops = is_fp8 ? 0.0 : flops})) {
    inner_.SelectKeys(params);
  }
}

void SectionBackend::AttendLatent(const AttendLatentParams& params) {
  if (Takes(Section::kAttend, WorkOf(params.attend, keys_))) {
    inner_.AttendLatent(params);
  }
}

void SectionBackend::AttendMasked(const AttendMaskedParams& params) {
  if (Takes(Section::kAttend, ExpandedWorkOf(params.attend, keys_))) {
    inner_.AttendMasked(params);
  }
}

void SectionBackend::GatedMlp(const GatedMlpParams& params) {
  SectionWork work;
  AddMlp(work, params);
  if (Takes(Section::kDenseMlp, work)) {
    inner_.GatedMlp(params);
  }
}

// Every expert that can be chosen is: random weights choose among them evenly.
void SectionBackend::ExpertMlp(const ExpertMlpParams& params) {
  SectionWork work;
  AddProduct(work, params.gate.x.rows, {.weight = params.gate.weight, .scales = {}});
  if (params.shared) {
    AddMlp(work, *params.shared);
  }
  const RoutedExpertsParams& routed = params.routed;
  const auto pairs = routed.experts.rows * routed.experts.cols;
  const auto experts = std::min(routed.gate.experts, pairs);
  const auto expert_values = static_cast<double>(3 * routed.gate.rows * routed.gate.cols);
  const bool is_fp8 = routed.gate.type == DataType::kFp8E4m3;
  work.bytes +=
      static_cast<double>(experts) * expert_values * static_cast<double>(SizeOf(routed.gate.type));
  (is_fp8 ? work.fp8_flops : work.bf16_flops) += 2.0 * static_cast<double>(pairs) * expert_values;
  if (Takes(Section::kExperts, work)) {
    inner_.ExpertMlp(params);
  }
}

}  // namespace dsa::bench
