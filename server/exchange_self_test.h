// Dispatch and Combine of one rank among those of a layout, on values that are known.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "model/model_config.h"
#include "model/rank_shape.h"

#include <cstdint>

namespace dsa {

// So many rows of each data rank, some of them padding where there are several.  Every rank calls
// it, on a thread of its own.  INTERNAL naming the rank and the op.
Status CheckExchange(Backend& backend, const RankPlace& place, const ModelConfig& model,
                     std::int64_t rows);

}  // namespace dsa
