// The reference backend.  Read it to learn what an op means; the CUDA backend is tested against it.
//
// Sums in float32 or double, in a fixed order (docs/numerics.md): threads split rows, columns or
// heads, never a sum, and vector code uses a fixed number of lanes, so a row's bits do not depend
// on the batch, the number of threads or the rows beside it.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

#include <memory>

namespace dsa {

struct CpuScratch;  // kernels/cpu/scratch.h

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads);  // > 0, the calling thread included
  ~CpuBackend() override;

  std::string Name() const override;
  Result<DeviceBuffer> Allocate(std::size_t bytes) override;
  void Free(void* data) override;
  std::int64_t AvailableBytes() const override;
  void CopyToDevice(void* target, const void* source, std::size_t bytes) override;
  void CopyToHost(void* target, const void* source, std::size_t bytes) override;
  void Zero(void* target, std::size_t bytes) override;
  void Synchronize() override {}
  std::int64_t ScratchBytes(const ScratchLimits& limits) const override;
  Status ReserveScratch(const ScratchLimits& limits) override;

  void Embed(const EmbedParams& params) override;
  void GatherRows(const GatherRowsParams& params) override;
  void RmsNorm(const RmsNormParams& params) override;
  void QuantizeFp8(const QuantizeFp8Params& params) override;
  void Linear(const LinearParams& params) override;
  void BlockScaledLinear(const BlockScaledLinearParams& params) override;
  void Rope(const RopeParams& params) override;
  void StoreLatent(const StoreLatentParams& params) override;
  void StoreIndexerKey(const StoreIndexerKeyParams& params) override;
  void PrepareIndexerQuery(const PrepareIndexerQueryParams& params) override;
  void IndexerLogits(const IndexerLogitsParams& params) override;
  void SelectTopK(const SelectTopKParams& params) override;
  void AbsorbQuery(const AbsorbQueryParams& params) override;
  void LatentAttention(const LatentAttentionParams& params) override;
  void ExpandValue(const ExpandValueParams& params) override;
  void MaskedAttention(const MaskedAttentionParams& params) override;
  void SwiGlu(const SwiGluParams& params) override;
  void Gate(const GateParams& params) override;
  void RoutedExperts(const RoutedExpertsParams& params) override;
  void Sample(const SampleParams& params) override;

 private:
  // CHECK-fails before ReserveScratch or where `rows` exceeds its tokens_max.
  const CpuScratch& ScratchFor(std::int64_t rows) const;

  ThreadPool pool_;
  std::unique_ptr<CpuScratch> scratch_;
};

}  // namespace dsa
