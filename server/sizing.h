// From the configuration and the model to the numbers that the engine and the executor are made
// with.  Pure arithmetic.
#pragma once

#include "common/status.h"
#include "model/model_config.h"
#include "server/config.h"
#include "server/engine/engine_loop.h"
#include "server/engine/model_executor.h"

#include <cstdint>

namespace dsa {

struct ServerSizes {
  EngineConfig engine;
  ModelExecutorConfig executor;
};

// `vocabulary_limit`: ids from here on are never sampled.  INVALID_ARGUMENT naming the key where
// the configuration does not fit the model, such as a context that the cache cannot hold.
Result<ServerSizes> SizeServer(const ServerConfig& config, const ModelConfig& model,
                               std::int32_t vocabulary_limit);

}  // namespace dsa
