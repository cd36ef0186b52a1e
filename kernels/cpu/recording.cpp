// What a step queues, and graphs: the calls of one recorded body, each with a copy of its
// parameters.  Running the body again instead would read the host anew and so hide a body that a
// device's graph could not follow.
#include "common/check.h"
#include "kernels/comm/collectives.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ops/absorb_query.h"
#include "kernels/ops/block_scaled_linear.h"
#include "kernels/ops/embed.h"
#include "kernels/ops/expand_value.h"
#include "kernels/ops/gate.h"
#include "kernels/ops/gather_rows.h"
#include "kernels/ops/indexer_logits.h"
#include "kernels/ops/latent_attention.h"
#include "kernels/ops/linear.h"
#include "kernels/ops/masked_attention.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/quantize_fp8.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"
#include "kernels/ops/routed_experts.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/select_top_k.h"
#include "kernels/ops/store_indexer_key.h"
#include "kernels/ops/store_latent.h"
#include "kernels/ops/swiglu.h"
#include "kernels/ops/update_block_tables.h"

#include <cstring>

namespace dsa {

template <typename Operation>
void CpuBackend::Queue(const Operation& operation) {
  if (recording_ != nullptr) {
    recording_->push_back(operation);
  } else {
    operation();
  }
}

void CpuBackend::CheckNotRecording(const char* call) const {
  DSA_CHECK(recording_ == nullptr, "CpuBackend: {} while a graph is recorded", call);
}

void CpuBackend::Record(GraphId graph, const std::function<void()>& body) {
  CheckNotRecording("Record");
  recording_ = &graphs_[graph];
  recording_->clear();
  body();
  recording_ = nullptr;
}

void CpuBackend::Replay(GraphId graph) {
  CheckNotRecording("Replay");
  const auto found = graphs_.find(graph);
  DSA_CHECK(found != graphs_.end(), "CpuBackend: graph {} was never recorded",
            static_cast<int>(graph));
  for (const std::function<void()>& operation : found->second) {
    operation();
  }
}

// Copies.

void CpuBackend::CopyToDevice(void* target, const void* source, std::size_t bytes) {
  CheckNotRecording("CopyToDevice");
  if (bytes > 0) {
    std::memcpy(target, source, bytes);
  }
}

void CpuBackend::CopyToHost(void* target, const void* source, std::size_t bytes) {
  CheckNotRecording("CopyToHost");
  if (bytes > 0) {
    std::memcpy(target, source, bytes);
  }
}

void CpuBackend::Upload(void* target, const HostBuffer& source, std::size_t offset,
                        std::size_t bytes) {
  DSA_CHECK(offset <= source.bytes() && bytes <= source.bytes() - offset,
            "Upload: bytes {} + {} of a buffer of {}", offset, bytes, source.bytes());
  const std::byte* const first = source.As<std::byte>() + offset;
  if (bytes > 0) {
    Queue([target, first, bytes] { std::memcpy(target, first, bytes); });
  }
}

void CpuBackend::Download(const HostBuffer& target, std::size_t offset, const void* source,
                          std::size_t bytes) {
  DSA_CHECK(offset <= target.bytes() && bytes <= target.bytes() - offset,
            "Download: bytes {} + {} of a buffer of {}", offset, bytes, target.bytes());
  std::byte* const first = target.As<std::byte>() + offset;
  if (bytes > 0) {
    Queue([first, source, bytes] { std::memcpy(first, source, bytes); });
  }
}

void CpuBackend::Zero(void* target, std::size_t bytes) {
  if (bytes > 0) {
    Queue([target, bytes] { std::memset(target, 0, bytes); });
  }
}

// Events: everything has run when a call returns.

void CpuBackend::Mark(int event) {
  CheckNotRecording("Mark");
  DSA_CHECK(event >= 0 && event < kEvents, "Mark: event {} of {}", event, kEvents);
  marked_ |= 1U << static_cast<unsigned>(event);
}

void CpuBackend::WaitFor(int event) {
  CheckNotRecording("WaitFor");
  DSA_CHECK(event >= 0 && event < kEvents, "WaitFor: event {} of {}", event, kEvents);
  DSA_CHECK((marked_ >> static_cast<unsigned>(event) & 1U) != 0, "WaitFor: event {} was not marked",
            event);
}

void CpuBackend::Synchronize() {
  CheckNotRecording("Synchronize");
}

// Ops.

void CpuBackend::Embed(const EmbedParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::GatherRows(const GatherRowsParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::RmsNorm(const RmsNormParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::QuantizeFp8(const QuantizeFp8Params& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::Linear(const LinearParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::BlockScaledLinear(const BlockScaledLinearParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::Rope(const RopeParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::StoreLatent(const StoreLatentParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::StoreIndexerKey(const StoreIndexerKeyParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::PrepareIndexerQuery(const PrepareIndexerQueryParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::IndexerLogits(const IndexerLogitsParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::SelectTopK(const SelectTopKParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::AbsorbQuery(const AbsorbQueryParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::LatentAttention(const LatentAttentionParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::ExpandValue(const ExpandValueParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::MaskedAttention(const MaskedAttentionParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::SwiGlu(const SwiGluParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::UpdateBlockTables(const UpdateBlockTablesParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::Gate(const GateParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::RoutedExperts(const RoutedExpertsParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::Sample(const SampleParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::AllReduce(const AllReduceParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::AllGather(const AllGatherParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::Dispatch(const DispatchParams& params) {
  Queue([this, params] { Compute(params); });
}
void CpuBackend::Combine(const CombineParams& params) {
  Queue([this, params] { Compute(params); });
}

}  // namespace dsa
