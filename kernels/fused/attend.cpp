#include "kernels/fused/attend.h"

#include "common/view_parts.h"
#include "kernels/backend.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/masked_attention.h"

namespace dsa {
namespace {

AnyTensor3 RopeColumns(const AttendParams& params) {
  return ColumnsOf(params.q, params.q.cols - kLatentRopeValues, kLatentRopeValues);
}

void RotateQueries(Backend& backend, const AttendParams& params) {
  backend.Rope({.x = RopeColumns(params),
                .positions = params.rows.positions,
                .table = params.table,
                .layout = params.layout});
}

}  // namespace

void Backend::AttendLatent(const AttendLatentParams& params) {
  const AttendParams& attend = params.attend;
  RotateQueries(*this, attend);
  AbsorbQuery({.q_nope = ColumnsOf(attend.q, 0, attend.q.cols - kLatentRopeValues),
               .w_uk = attend.w_uk,
               .q_latent = params.q_latent});
  LatentAttention({.q_latent = params.q_latent,
                   .q_rope = RopeColumns(attend),
                   .cache = attend.cache,
                   .rows = attend.rows,
                   .selection = attend.selection,
                   .softmax_scale = attend.softmax_scale,
                   .o_latent = params.o_latent});
  ExpandValue(
      {.o_latent = params.o_latent, .w_uv = attend.w_uv, .o = HeadsOf(attend.o.x, attend.q.heads)});
  Quantize(*this, attend.o);
}

void Backend::AttendMasked(const AttendMaskedParams& params) {
  const AttendParams& attend = params.attend;
  RotateQueries(*this, attend);
  MaskedAttention({.q = attend.q,
                   .w_uk = attend.w_uk,
                   .w_uv = attend.w_uv,
                   .cache = attend.cache,
                   .rows = attend.rows,
                   .selection = attend.selection,
                   .softmax_scale = attend.softmax_scale,
                   .o = HeadsOf(attend.o.x, attend.q.heads)});
  Quantize(*this, attend.o);
}

}  // namespace dsa
