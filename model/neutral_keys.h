// Keys of config.json and generation_config.json that change answers elsewhere and that nothing
// here implements: accepted where they change nothing, otherwise refused by name, so that no
// setting of a checkpoint is silently left out.
#pragma once

#include "common/json.h"
#include "common/status.h"
#include "model/model_config.h"

namespace dsa {

// After everything else has read its keys.  INVALID_ARGUMENT naming key and value.
Status CheckNeutralConfigKeys(JsonObject& json, const ModelConfig& config);
Status CheckNeutralGenerationKeys(JsonObject& json);

// Whether a key of either file says nothing about answers, and needs no line in the log.
bool IsIrrelevantKey(std::string_view key);

}  // namespace dsa
