#include "kernels/fused/expert_mlp.h"

#include "common/check.h"
#include "kernels/backend.h"

namespace dsa {

void Validate(const ExpertMlpParams& params) {
  const bool has_shared = params.routed.shared.data != nullptr;
  DSA_CHECK(params.gate.experts.data == params.routed.experts.data &&
                params.gate.weights.data == params.routed.weights.data,
            "ExpertMlp: the experts do not read the gate of {} rows", params.gate.experts.rows);
  DSA_CHECK(has_shared == params.shared.has_value() &&
                (!has_shared || params.shared->y.data == params.routed.shared.data),
            "ExpertMlp: the experts do not add the shared expert of {} rows",
            params.routed.shared.rows);
}

void Backend::ExpertMlp(const ExpertMlpParams& params) {
  Validate(params);
  Gate(params.gate);
  if (params.shared) {
    GatedMlp(*params.shared);
  }
  RoutedExperts(params.routed);
}

}  // namespace dsa
