#include "kernels/fused/attend.h"

#include "common/view_parts.h"
#include "kernels/backend.h"
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

ExpandValueParams ExpandOf(const AttendLatentParams& params) {
  const AttendParams& attend = params.attend;
  const bool is_fp8 = attend.w_uv_fp8.values.data != nullptr;
  return {.o_latent = params.o_latent,
          .w_uv = is_fp8 ? attend.w_uv_fp8.values : attend.w_uv,
          .o = HeadsOf(attend.o.x, attend.q.heads),
          .w_uv_scales = attend.w_uv_fp8.scales};
}

QueriesToAbsorb QueriesOf(const AttendLatentParams& params) {
  return {.q = params.attend.q,
          .table = params.attend.table,
          .layout = params.attend.layout,
          .w_uk = params.attend.w_uk,
          .q_latent = params.q_latent};
}

RopeParams RopeOf(const QueriesToAbsorb& queries, const Vector<const std::int32_t>& positions) {
  return {.x = ColumnsOf(queries.q, queries.q.cols - kLatentRopeValues, kLatentRopeValues),
          .positions = positions,
          .table = queries.table,
          .layout = queries.layout};
}

AbsorbQueryParams AbsorbOf(const QueriesToAbsorb& queries) {
  return {.q_nope = ColumnsOf(queries.q, 0, queries.q.cols - kLatentRopeValues),
          .w_uk = queries.w_uk,
          .q_latent = queries.q_latent};
}

void Backend::AttendLatent(const AttendLatentParams& params) {
  const AttendParams& attend = params.attend;
  if (!params.is_absorbed) {
    const QueriesToAbsorb queries = QueriesOf(params);
    Rope(RopeOf(queries, attend.rows.positions));
    AbsorbQuery(AbsorbOf(queries));
  }
  LatentAttention({.q_latent = params.q_latent,
                   .q_rope = RopeColumns(attend),
                   .cache = attend.cache,
                   .rows = attend.rows,
                   .selection = attend.selection,
                   .softmax_scale = attend.softmax_scale,
                   .o_latent = params.o_latent});
  ExpandValue(ExpandOf(params));
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
