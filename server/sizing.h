// From the configuration, the model and the memory that is free to the numbers that the engine and
// the executor are made with.  Pure arithmetic.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "model/model_config.h"
#include "server/config.h"
#include "server/engine/engine_loop.h"
#include "server/engine/model_executor.h"

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace dsa {

// Device memory that a server takes, in bytes, before it takes any: on the CPU of all ranks
// together, on CUDA of one, each part of the rank that has most of it.
struct ServerMemory {
  std::int64_t weights;
  ExecutorMemory executor;
  std::int64_t reserve;    // kept free, on a CUDA device
  std::int64_t host;       // where the device is the host: requests, texts and gRPC's buffers
  std::int64_t available;  // of several CUDA devices, on that which has least
  std::string_view bound;  // what limits it, such as "cgroup limit"; a constant, "" for a device's
  bool default_cache;      // its size was chosen by DefaultCacheBytes

  std::int64_t needed() const { return weights + executor.total() + reserve + host; }
};

// "4.4 GB: weights 9.1 MB, caches 4.3 GB, ...; 20 GB available (RAM)"
std::string ToText(const ServerMemory& memory);

struct ServerSizes {
  EngineConfig engine;
  ModelExecutorConfig executor;
  ServerMemory memory;
};

struct SizedModel {
  const ModelConfig& config;
  // On the device of a rank; called with a layout that the model can be split by.
  std::function<std::int64_t(const RankPlace& place)> weight_bytes;
  std::int32_t vocabulary_limit;  // ids from here on are never sampled
};

// The ranks that the configuration asks for.
RankLayout LayoutOf(const ServerConfig& config);

// INVALID_ARGUMENT naming `key` and the possible numbers where the model cannot be split over so
// many ranks.
Status CheckRanks(std::string_view key, std::int64_t ranks, const ModelConfig& model);

// INVALID_ARGUMENT where a model without routed experts is to have several data ranks.
Status CheckDataRanks(std::int64_t data_ranks, const ModelConfig& model);

// Whether masked_mha_until is measured once the model is there (server/masked_border.h).
bool MeasuresMaskedBorder(const ServerConfig& config);

// What a rank's executor is made with, but for the blocks of its caches, which are 0.
Result<ModelExecutorConfig> PlanExecutor(const ServerConfig& config, const ModelConfig& model);

// What gRPC may take for its own buffers where so much memory is free.
std::int64_t GrpcBytesMax(std::int64_t available_bytes);

// Where masked_mha_until is measured, the sizes are those of the largest it can become, and so are
// the scheduler's and the executor's numbers; SetMaskedUntil puts in what was measured.
//
// `backends` of the ranks, at least one.  INVALID_ARGUMENT naming the key where the configuration
// does not fit the model, such as a context that the cache cannot hold; FAILED_PRECONDITION with
// all parts where they need more than the backend's available memory, and how much would suffice:
// of a limit, such as a control group's, with what is taken of it already.
Result<ServerSizes> SizeServer(const ServerConfig& config, const SizedModel& model,
                               std::span<Backend* const> backends);

void SetMaskedUntil(const ServerConfig& config, std::int64_t masked_mha_until, ServerSizes& sizes);

}  // namespace dsa
