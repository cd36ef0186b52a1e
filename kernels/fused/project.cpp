#include "kernels/fused/project.h"

#include "kernels/backend.h"

namespace dsa {

void Backend::Project(const ProjectParams& params) {
  for (const Projection& projection : params.projections) {
    if (projection.weight.weight.data != nullptr) {
      Multiply(*this, params.x, projection.weight, projection.y);
    }
  }
}

}  // namespace dsa
