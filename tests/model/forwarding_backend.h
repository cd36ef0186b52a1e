// A backend that passes every op on to another one.  Tests derive from it to watch ops or to plant
// faults in them; both backends share host memory.
#pragma once

#include "kernels/backend.h"

#include <cstdint>
#include <string>

namespace dsa::testing {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(Backend& inner) : inner_(inner) {}

  std::string Name() const override { return inner_.Name(); }
  Result<DeviceBuffer> Allocate(std::size_t bytes) override { return inner_.Allocate(bytes); }
  void Free(void* data) override { inner_.Free(data); }
  std::int64_t AvailableBytes() const override { return inner_.AvailableBytes(); }
  void CopyToDevice(void* target, const void* source, std::size_t bytes) override {
    inner_.CopyToDevice(target, source, bytes);
  }
  void CopyToHost(void* target, const void* source, std::size_t bytes) override {
    inner_.CopyToHost(target, source, bytes);
  }
  void Zero(void* target, std::size_t bytes) override { inner_.Zero(target, bytes); }
  void Synchronize() override { inner_.Synchronize(); }
  std::int64_t ScratchBytes(const ScratchLimits& limits) const override {
    return inner_.ScratchBytes(limits);
  }
  Status ReserveScratch(const ScratchLimits& limits) override {
    return inner_.ReserveScratch(limits);
  }

  void Embed(const EmbedParams& params) override { inner_.Embed(params); }
  void GatherRows(const GatherRowsParams& params) override { inner_.GatherRows(params); }
  void RmsNorm(const RmsNormParams& params) override { inner_.RmsNorm(params); }
  void QuantizeFp8(const QuantizeFp8Params& params) override { inner_.QuantizeFp8(params); }
  void Linear(const LinearParams& params) override { inner_.Linear(params); }
  void BlockScaledLinear(const BlockScaledLinearParams& params) override {
    inner_.BlockScaledLinear(params);
  }
  void Rope(const RopeParams& params) override { inner_.Rope(params); }
  void StoreLatent(const StoreLatentParams& params) override { inner_.StoreLatent(params); }
  void StoreIndexerKey(const StoreIndexerKeyParams& params) override {
    inner_.StoreIndexerKey(params);
  }
  void PrepareIndexerQuery(const PrepareIndexerQueryParams& params) override {
    inner_.PrepareIndexerQuery(params);
  }
  void IndexerLogits(const IndexerLogitsParams& params) override { inner_.IndexerLogits(params); }
  void SelectTopK(const SelectTopKParams& params) override { inner_.SelectTopK(params); }
  void AbsorbQuery(const AbsorbQueryParams& params) override { inner_.AbsorbQuery(params); }
  void LatentAttention(const LatentAttentionParams& params) override {
    inner_.LatentAttention(params);
  }
  void ExpandValue(const ExpandValueParams& params) override { inner_.ExpandValue(params); }
  void MaskedAttention(const MaskedAttentionParams& params) override {
    inner_.MaskedAttention(params);
  }
  void SwiGlu(const SwiGluParams& params) override { inner_.SwiGlu(params); }
  void Gate(const GateParams& params) override { inner_.Gate(params); }
  void RoutedExperts(const RoutedExpertsParams& params) override { inner_.RoutedExperts(params); }
  void Sample(const SampleParams& params) override { inner_.Sample(params); }

 protected:
  Backend& inner_;
};

}  // namespace dsa::testing
