// Ops that the CUDA backend does not have yet.  CudaBackend::IsComplete() is false while this file
// exists, and a server refuses to start on the device.
#include "common/check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/masked_attention.h"
#include "kernels/ops/routed_experts.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/swiglu.h"

#include <string_view>

namespace dsa {
namespace {

[[noreturn]] void Missing(std::string_view op) {
  CheckFailed("CudaBackend::IsComplete()", __FILE__, __LINE__, "CudaBackend has no {} yet", {op});
}

}  // namespace

void CudaBackend::AbsorbQuery(const AbsorbQueryParams& /*params*/) {
  Missing("AbsorbQuery");
}
void CudaBackend::LatentAttention(const LatentAttentionParams& /*params*/) {
  Missing("LatentAttention");
}
void CudaBackend::ExpandValue(const ExpandValueParams& /*params*/) {
  Missing("ExpandValue");
}
void CudaBackend::MaskedAttention(const MaskedAttentionParams& /*params*/) {
  Missing("MaskedAttention");
}
void CudaBackend::SwiGlu(const SwiGluParams& /*params*/) {
  Missing("SwiGlu");
}
void CudaBackend::Gate(const GateParams& /*params*/) {
  Missing("Gate");
}
void CudaBackend::RoutedExperts(const RoutedExpertsParams& /*params*/) {
  Missing("RoutedExperts");
}
void CudaBackend::Sample(const SampleParams& /*params*/) {
  Missing("Sample");
}

}  // namespace dsa
