// A device that can run the model: its memory, its stream and one method per op.
//
// Each op has its own header under kernels/ops/ (parameters, equation, checks) and one source file
// per backend that defines just that method.  A backend belongs to one thread; its ops are queued
// in order on its stream and return before they have run, except on the CPU.  Every pointer in a
// params struct is device memory of this backend.  Ops allocate nothing: what they need beside
// their parameters is scratch of the backend, sized once by ReserveScratch.
#pragma once

#include "common/status.h"
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

#include <cstddef>
#include <cstdint>
#include <string>

namespace dsa {

class Backend;

// Device memory, freed with its owner.  Must not outlive its backend.
class DeviceBuffer final {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Backend* backend, void* data, std::size_t bytes)
      : backend_(backend), data_(data), bytes_(bytes) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = static_cast<DeviceBuffer&&>(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { Reset(); }

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  void Reset();

  Backend* backend_ = nullptr;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// The largest extents any op of a step may have; what scratch is sized from.
struct ScratchLimits {
  std::int64_t tokens_max;          // rows of a step
  std::int64_t context_max;         // visible keys of a row
  std::int64_t masked_context_max;  // visible keys of a row on the masked path; 0: path unused
  std::int64_t hidden;              // D
  std::int64_t heads;               // attention heads
  std::int64_t nope;                // N, q/k width of a head without RoPE
  std::int64_t value;               // V, value width of a head
  std::int64_t index_heads;         // 0 without DSA
  std::int64_t index_topk;          // 0 without DSA
  std::int64_t experts;             // 0 without MoE
  std::int64_t experts_per_token;
  std::int64_t expert_width;      // I
  std::int64_t linear_width_max;  // the largest K or N of any projection
  std::int64_t logit_rows_max;
  std::int64_t vocabulary;
};

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  virtual std::string Name() const = 0;  // "cpu (2 threads)", "NVIDIA H100 80GB HBM3"

  // Memory.  Contents are undefined; 256-byte aligned.  FAILED_PRECONDITION with needed and free
  // bytes where the device has not enough.
  virtual Result<DeviceBuffer> Allocate(std::size_t bytes) = 0;
  virtual void Free(void* data) = 0;
  // Bytes that Allocate and ReserveScratch can still take; others may take them first.
  virtual std::int64_t AvailableBytes() const = 0;
  // Queued in stream order; `source` of CopyToDevice may be reused after the call returns, and
  // `target` of CopyToHost is filled after Synchronize.
  virtual void CopyToDevice(void* target, const void* source, std::size_t bytes) = 0;
  virtual void CopyToHost(void* target, const void* source, std::size_t bytes) = 0;
  virtual void Zero(void* target, std::size_t bytes) = 0;
  // Waits until everything queued so far has run.
  virtual void Synchronize() = 0;
  // Sizes all scratch; once, before the first op.  ScratchBytes says beforehand what it allocates.
  virtual std::int64_t ScratchBytes(const ScratchLimits& limits) const = 0;
  virtual Status ReserveScratch(const ScratchLimits& limits) = 0;

  virtual void Embed(const EmbedParams& params) = 0;
  virtual void GatherRows(const GatherRowsParams& params) = 0;
  virtual void RmsNorm(const RmsNormParams& params) = 0;
  virtual void QuantizeFp8(const QuantizeFp8Params& params) = 0;
  virtual void Linear(const LinearParams& params) = 0;
  virtual void BlockScaledLinear(const BlockScaledLinearParams& params) = 0;
  virtual void Rope(const RopeParams& params) = 0;
  virtual void StoreLatent(const StoreLatentParams& params) = 0;
  virtual void StoreIndexerKey(const StoreIndexerKeyParams& params) = 0;
  virtual void PrepareIndexerQuery(const PrepareIndexerQueryParams& params) = 0;
  virtual void IndexerLogits(const IndexerLogitsParams& params) = 0;
  virtual void SelectTopK(const SelectTopKParams& params) = 0;
  virtual void AbsorbQuery(const AbsorbQueryParams& params) = 0;
  virtual void LatentAttention(const LatentAttentionParams& params) = 0;
  virtual void ExpandValue(const ExpandValueParams& params) = 0;
  virtual void MaskedAttention(const MaskedAttentionParams& params) = 0;
  virtual void SwiGlu(const SwiGluParams& params) = 0;
  virtual void Gate(const GateParams& params) = 0;
  virtual void RoutedExperts(const RoutedExpertsParams& params) = 0;
  virtual void Sample(const SampleParams& params) = 0;
};

}  // namespace dsa
