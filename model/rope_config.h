// RoPE and YaRN keys of config.json, and what follows from them.  Internal to model/.
//
// Only .cpp files include this header: nlohmann/json is heavy.
#pragma once

#include "common/json.h"
#include "common/status.h"
#include "model/model_config.h"

namespace dsa {

// Sets rope_frequencies and softmax_scale.  Reads rope_parameters, or rope_scaling and rope_theta
// as older files spell it.  Needs `nope`.
Status ReadRope(JsonObject& json, ModelConfig& config);

}  // namespace dsa
