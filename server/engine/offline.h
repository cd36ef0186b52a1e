// Runs one request from beginning to end without a server: what `dsa logits`, `dsa generate` and
// the model's tests call.  It goes through the real engine, scheduler, prefix cache, batch builder
// and executor, on the calling thread.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "scheduler/request.h"
#include "scheduler/scheduler_config.h"
#include "server/engine/model_executor.h"

#include <cstdint>
#include <vector>

namespace dsa {

struct OfflineOptions {
  KvFormat kv_format;
  AttentionMode attention;        // ignored by a model without an indexer
  std::int64_t step_tokens_max;   // rows of a step: longer prompts are computed in chunks; > 0
  std::int64_t masked_mha_until;  // prompt positions below take the masked path; 0: none
};

struct OfflineResult {
  std::vector<std::int32_t> ids;  // generated, the end id included
  FinishReason finish;
  // [prompt tokens, vocabulary], where the request asked for PromptLogits::kAll; else empty.
  std::vector<float> prompt_logits;
};

// INVALID_ARGUMENT for a request that does not validate or does not fit the model's context,
// INTERNAL where scores or logits are not finite, FAILED_PRECONDITION where memory is missing.
// Takes the backend's scratch: one call a backend.
Result<OfflineResult> RunOffline(Backend& backend, const LoadedModel& model,
                                 const OfflineOptions& options, Request request);

}  // namespace dsa
