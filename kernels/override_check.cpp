#include "kernels/override_check.h"

#include "common/view_parts.h"
#include "kernels/fused/add_norm.h"
#include "kernels/fused/attend.h"
#include "kernels/fused/expert_mlp.h"
#include "kernels/fused/gated_mlp.h"
#include "kernels/fused/project.h"
#include "kernels/fused/select_keys.h"
#include "kernels/fused/write_keys.h"

#include <algorithm>
#include <array>

namespace dsa {
namespace {

// All heads of a row behind one another.
AnyMatrix RowsOfHeads(const AnyTensor3& x) {
  return {.data = x.data,
          .type = x.type,
          .rows = x.rows,
          .cols = x.heads * x.cols,
          .row_stride = x.row_stride};
}

}  // namespace

template <typename Params>
void OverrideCheck::Compare(std::string_view op, void (Backend::*method)(const Params&),
                            const Params& params,
                            void (*run_default)(OverrideCheck&, const Params&)) {
  const WrittenList written = Written(params);
  const WrittenBytes before = ReadBack(inner_, written);
  (inner_.*method)(params);
  const WrittenBytes actual = ReadBack(inner_, written);
  PutBack(inner_, written, before);
  run_default(*this, params);
  const WrittenBytes expected = ReadBack(inner_, written);
  for (const auto& [output, difference] : CompareOutputs(written, actual, expected)) {
    OverrideDifference& largest =
        differences_
            .try_emplace(
                std::string(op) + " " + output,
                OverrideDifference{
                    .op = std::string(op), .output = output, .relative_error = 0.0, .unequal = 0.0})
            .first->second;
    largest.relative_error = std::max(largest.relative_error, difference.relative_error);
    largest.unequal = std::max(largest.unequal, difference.unequal);
  }
}

std::vector<OverrideDifference> OverrideCheck::Differences() const {
  return Faults(-1.0);
}

std::vector<OverrideDifference> OverrideCheck::Faults(double tolerance) const {
  std::vector<OverrideDifference> faults;
  for (const auto& [name, difference] : differences_) {
    if (difference.relative_error > tolerance) {
      faults.push_back(difference);
    }
  }
  return faults;
}

// What each op writes, work memory apart.

WrittenList OverrideCheck::Written(const AddNormParams& params) {
  WrittenList written;
  AddMatrix(written, "residual", params.residual);
  AddActivation(written, "y", params.y);
  return written;
}

WrittenList OverrideCheck::Written(const ProjectParams& params) {
  constexpr std::array<const char*, kProjectionsMax> kNames = {"y[0]", "y[1]", "y[2]", "y[3]"};
  WrittenList written;
  for (std::size_t i = 0; i < kProjectionsMax; ++i) {
    if (params.projections[i].weight.weight.data != nullptr) {
      AddMatrix(written, kNames[i], params.projections[i].y);
    }
  }
  if (params.absorbed) {
    AddMatrix(written, "q_latent", RowsOfHeads(params.absorbed->queries.q_latent));
  }
  return written;
}

WrittenList OverrideCheck::Written(const WriteKeysParams& params) {
  WrittenList written;
  AddActivation(written, "query latent", params.query_latent);
  AddLatents(written, inner_, params.latent.cache, params.latent.slots);
  if (params.indexer_key) {
    AddIndexerKeys(written, inner_, params.indexer_key->cache, params.indexer_key->slots);
  }
  return written;
}

WrittenList OverrideCheck::Written(const SelectKeysParams& params) {
  WrittenList written;
  AddExact(written, "slots", params.slots);
  AddExact(written, "mask", params.mask);
  AddExact(written, "counts", params.counts);
  AddExact(written, "faults", params.faults);
  if (params.absorbed) {
    AddMatrix(written, "q", RowsOfHeads(params.absorbed->q));
    AddMatrix(written, "q_latent", RowsOfHeads(params.absorbed->q_latent));
  }
  return written;
}

WrittenList OverrideCheck::Written(const AttendLatentParams& params) {
  return Written(AttendMaskedParams{.attend = params.attend});
}

WrittenList OverrideCheck::Written(const AttendMaskedParams& params) {
  WrittenList written;
  AddMatrix(written, "q", RowsOfHeads(params.attend.q));  // in and out: restored, and compared
  AddActivation(written, "o", params.attend.o);
  return written;
}

WrittenList OverrideCheck::Written(const GatedMlpParams& params) {
  WrittenList written;
  AddMatrix(written, "y", params.y);
  return written;
}

WrittenList OverrideCheck::Written(const ExpertMlpParams& params) {
  WrittenList written;
  AddExact(written, "experts", params.gate.experts);
  AddMatrix(written, "weights", AsAny(params.gate.weights));
  AddExact(written, "pairs", params.gate.expert_pairs);  // in and out
  AddMatrix(written, "y", params.routed.y);
  return written;
}

// The default body of this backend's own base: its plain ops go to the backend under test.

void OverrideCheck::AddNorm(const AddNormParams& params) {
  Compare<AddNormParams>(
      "AddNorm", &Backend::AddNorm, params,
      [](OverrideCheck& check, const AddNormParams& same) { check.Backend::AddNorm(same); });
}
void OverrideCheck::Project(const ProjectParams& params) {
  Compare<ProjectParams>(
      "Project", &Backend::Project, params,
      [](OverrideCheck& check, const ProjectParams& same) { check.Backend::Project(same); });
}
void OverrideCheck::WriteKeys(const WriteKeysParams& params) {
  Compare<WriteKeysParams>(
      "WriteKeys", &Backend::WriteKeys, params,
      [](OverrideCheck& check, const WriteKeysParams& same) { check.Backend::WriteKeys(same); });
}
void OverrideCheck::SelectKeys(const SelectKeysParams& params) {
  Compare<SelectKeysParams>(
      "SelectKeys", &Backend::SelectKeys, params,
      [](OverrideCheck& check, const SelectKeysParams& same) { check.Backend::SelectKeys(same); });
}
void OverrideCheck::AttendLatent(const AttendLatentParams& params) {
  Compare<AttendLatentParams>("AttendLatent", &Backend::AttendLatent, params,
                              [](OverrideCheck& check, const AttendLatentParams& same) {
                                check.Backend::AttendLatent(same);
                              });
}
void OverrideCheck::AttendMasked(const AttendMaskedParams& params) {
  Compare<AttendMaskedParams>("AttendMasked", &Backend::AttendMasked, params,
                              [](OverrideCheck& check, const AttendMaskedParams& same) {
                                check.Backend::AttendMasked(same);
                              });
}
void OverrideCheck::GatedMlp(const GatedMlpParams& params) {
  Compare<GatedMlpParams>(
      "GatedMlp", &Backend::GatedMlp, params,
      [](OverrideCheck& check, const GatedMlpParams& same) { check.Backend::GatedMlp(same); });
}
void OverrideCheck::ExpertMlp(const ExpertMlpParams& params) {
  Compare<ExpertMlpParams>(
      "ExpertMlp", &Backend::ExpertMlp, params,
      [](OverrideCheck& check, const ExpertMlpParams& same) { check.Backend::ExpertMlp(same); });
}

}  // namespace dsa
