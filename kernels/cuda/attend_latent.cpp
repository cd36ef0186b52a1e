// AttendLatent: queries are rotated and absorbed in one launch, outputs expanded and quantized in
// one; attention stands between them.
#include "kernels/cuda/attend_latent.h"

#include "common/view_parts.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/fused/attend.h"
#include "kernels/ops/latent_attention.h"

namespace dsa {

void CudaBackend::RotateAndAbsorb(const cuda::RotateAndAbsorbParams& params) {
  if (!cuda::RotateAndAbsorb(params, stream())) {
    Rope(params.rope);
    AbsorbQuery(params.absorb);
  }
}

void CudaBackend::AttendLatent(const AttendLatentParams& params) {
  const AttendParams& attend = params.attend;
  const std::int64_t nope = attend.q.cols - kLatentRopeValues;
  const AnyTensor3 q_rope = ColumnsOf(attend.q, nope, kLatentRopeValues);
  if (!params.is_absorbed) {
    const QueriesToAbsorb queries = QueriesOf(params);
    RotateAndAbsorb({.rope = RopeOf(queries, attend.rows.positions), .absorb = AbsorbOf(queries)});
  }
  LatentAttention({.q_latent = params.q_latent,
                   .q_rope = q_rope,
                   .cache = attend.cache,
                   .rows = attend.rows,
                   .selection = attend.selection,
                   .softmax_scale = attend.softmax_scale,
                   .o_latent = params.o_latent});
  const ExpandValueParams expand = ExpandOf(params);
  if (expand.w_uv.type == DataType::kFp8E4m3) {
    cuda::ExpandFp8(expand, attend.o.fp8, stream());
  } else if (!cuda::ExpandAndQuantize(expand, attend.o.fp8, stream())) {
    ExpandValue(expand);
    Quantize(*this, attend.o);
  }
}

}  // namespace dsa
