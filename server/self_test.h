// What a device must show before it serves: that its ops compute what the CPU's do, and its fast
// ops what its plain ones do, past index_topk.
//
//   plain ops   a tiny random model of the served one's family, types and cache format, run by the
//               CPU and by the device, op by op (kernels/op_trace.h)
//   overrides   the loaded model's first dense, first expert and last layer, each fused op beside
//               its default body on the same operands (kernels/override_check.h); and the tiny
//               model's layers, since a trained one hardly attends to what it does not select
//
// Differences that the order of a sum can cause are allowed, so it finds what is broken, such as a
// kernel on a driver or device that it does not run right on; the operator tests find what is off.
#pragma once

#include "common/status.h"
#include "kernels/backend.h"
#include "server/engine/model_executor.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

namespace dsa {

struct SelfTestOptions {
  // A backend on the device where the weights lie; called once for each run, since a run takes its
  // scratch.
  std::function<Result<std::unique_ptr<Backend>>()> make_device;
  KvFormat kv_format;
  std::int64_t masked_mha_until;  // as the server's
  std::int64_t step_tokens_max;   // as the server's
  int threads;                    // of the CPU
};

// Uses device memory for a moment, less than an executor of these options takes.  INTERNAL, one
// line, naming the operator that differs, its output and by how much.
Status RunSelfTest(const LoadedModel& model, const SelfTestOptions& options);

// Of one rank's device: all of it but what the loaded model's layers show, which a rank has in
// part.
Status RunRankSelfTest(const ModelConfig& model, const SelfTestOptions& options);

// Of the ranks together: AllReduce of one row and of many, and AllGather, of the tensor ranks of
// each data rank, then, with several data ranks, Dispatch and Combine of all, held to values that
// are known.  A thread for each rank, which uses its backend meanwhile.  INTERNAL naming the rank
// and the op.
Status RunCollectiveTest(std::span<Backend* const> ranks, const ModelConfig& model,
                         const RankLayout& layout, std::int64_t step_tokens_max);

}  // namespace dsa
