#include "kernels/fused/project.h"

#include "kernels/backend.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/rope.h"

namespace dsa {

void Backend::Project(const ProjectParams& params) {
  for (const Projection& projection : params.projections) {
    if (projection.weight.weight.data != nullptr) {
      Multiply(*this, params.x, projection.weight, projection.y);
    }
  }
  if (params.absorbed) {
    Rope(RopeOf(params.absorbed->queries, params.absorbed->positions));
    AbsorbQuery(AbsorbOf(params.absorbed->queries));
  }
}

}  // namespace dsa
