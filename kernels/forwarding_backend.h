// A backend that passes everything on to another one, which gives it its memory.  Derive from it to
// watch ops, to compare them or to plant faults in them.  Fused ops have their default bodies, so
// that every plain op passes through here.
#pragma once

#include "kernels/backend.h"

#include <cstdint>
#include <string>

namespace dsa {

class ForwardingBackend : public Backend {
 public:
  explicit ForwardingBackend(Backend& inner) : inner_(inner) {}

  std::string Name() const override { return inner_.Name(); }
  void BindThread() override { inner_.BindThread(); }
  Result<DeviceBuffer> Allocate(std::size_t bytes) override { return inner_.Allocate(bytes); }
  void Free(void* data) override { inner_.Free(data); }
  Result<HostBuffer> AllocateHost(std::size_t bytes) override { return inner_.AllocateHost(bytes); }
  void FreeHost(void* data) override { inner_.FreeHost(data); }
  std::int64_t AvailableBytes() const override { return inner_.AvailableBytes(); }
  void CopyToDevice(void* target, const void* source, std::size_t bytes) override {
    inner_.CopyToDevice(target, source, bytes);
  }
  void CopyToHost(void* target, const void* source, std::size_t bytes) override {
    inner_.CopyToHost(target, source, bytes);
  }
  void Upload(void* target, const HostBuffer& source, std::size_t offset,
              std::size_t bytes) override {
    inner_.Upload(target, source, offset, bytes);
  }
  void Download(const HostBuffer& target, std::size_t offset, const void* source,
                std::size_t bytes) override {
    inner_.Download(target, offset, source, bytes);
  }
  void Zero(void* target, std::size_t bytes) override { inner_.Zero(target, bytes); }
  void Mark(int event) override { inner_.Mark(event); }
  void WaitFor(int event) override { inner_.WaitFor(event); }
  void FillRandom(const FillRandomParams& params) override { inner_.FillRandom(params); }
  void Synchronize() override { inner_.Synchronize(); }
  // `body` calls this backend, so what is kept is what this one passes on.
  void Record(GraphId graph, const std::function<void()>& body) override {
    inner_.Record(graph, body);
  }
  void Replay(GraphId graph) override { inner_.Replay(graph); }
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
  void UpdateBlockTables(const UpdateBlockTablesParams& params) override {
    inner_.UpdateBlockTables(params);
  }
  void Gate(const GateParams& params) override { inner_.Gate(params); }
  void RoutedExperts(const RoutedExpertsParams& params) override { inner_.RoutedExperts(params); }
  void Sample(const SampleParams& params) override { inner_.Sample(params); }
  void AllReduce(const AllReduceParams& params) override { inner_.AllReduce(params); }
  void AllGather(const AllGatherParams& params) override { inner_.AllGather(params); }
  void Dispatch(const DispatchParams& params) override { inner_.Dispatch(params); }
  void Combine(const CombineParams& params) override { inner_.Combine(params); }
  DataType PartialSumType() const override { return inner_.PartialSumType(); }
  void PlanAttention(const PagedRows& rows, std::int64_t heads, bool batch_invariant) override {
    inner_.PlanAttention(rows, heads, batch_invariant);
  }
  bool AbsorbsInProject(const ProjectParams& params) const override {
    return inner_.AbsorbsInProject(params);
  }

 protected:
  Backend& inner_;
};

}  // namespace dsa
