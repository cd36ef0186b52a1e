// The reference backend.  Read it to learn what an op means; the CUDA backend is tested against it.
//
// Sums in float32 or double, in a fixed order (docs/numerics.md): threads split rows, columns or
// heads, never a sum, and vector code uses a fixed number of lanes, so a row's bits do not depend
// on the batch, the number of threads or the rows beside it.
//
// An op's public method either calls its Compute, at once, or keeps the call where it is recording
// (recording.cpp); Compute(const <Op>Params&) stands in kernels/cpu/<op>.cpp.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace dsa {

struct CollectiveCall;  // kernels/comm/thread_group.h
struct CpuScratch;      // kernels/cpu/scratch.h
class ThreadGroup;

// A place among ranks that are threads; of a model on one backend the group is null.
struct CpuSeat {
  ThreadGroup* group;  // outlives the backend
  int rank;            // in [0, ranks of the group), no other backend's
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads);  // > 0, the calling thread included
  CpuBackend(int threads, CpuSeat seat);
  ~CpuBackend() override;

  std::string Name() const override;
  void BindThread() override {}
  Result<DeviceBuffer> Allocate(std::size_t bytes) override;
  void Free(void* data) override;
  Result<HostBuffer> AllocateHost(std::size_t bytes) override;
  void FreeHost(void* data) override;
  std::int64_t AvailableBytes() const override;
  void CopyToDevice(void* target, const void* source, std::size_t bytes) override;
  void CopyToHost(void* target, const void* source, std::size_t bytes) override;
  void Upload(void* target, const HostBuffer& source, std::size_t offset,
              std::size_t bytes) override;
  void Download(const HostBuffer& target, std::size_t offset, const void* source,
                std::size_t bytes) override;
  void Zero(void* target, std::size_t bytes) override;
  void Mark(int event) override;
  void WaitFor(int event) override;
  void FillRandom(const FillRandomParams& params) override;
  void Synchronize() override;
  void Record(GraphId graph, const std::function<void()>& body) override;
  void Replay(GraphId graph) override;
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
  void UpdateBlockTables(const UpdateBlockTablesParams& params) override;
  void Gate(const GateParams& params) override;
  void RoutedExperts(const RoutedExpertsParams& params) override;
  void Sample(const SampleParams& params) override;
  void AllReduce(const AllReduceParams& params) override;
  void AllGather(const AllGatherParams& params) override;
  void Dispatch(const DispatchParams& params) override;
  void Combine(const CombineParams& params) override;
  DataType PartialSumType() const override { return DataType::kF64; }

 private:
  void Compute(const EmbedParams& params);
  void Compute(const GatherRowsParams& params);
  void Compute(const RmsNormParams& params);
  void Compute(const QuantizeFp8Params& params);
  void Compute(const LinearParams& params);
  void Compute(const BlockScaledLinearParams& params);
  void Compute(const RopeParams& params);
  void Compute(const StoreLatentParams& params);
  void Compute(const StoreIndexerKeyParams& params);
  void Compute(const PrepareIndexerQueryParams& params);
  void Compute(const IndexerLogitsParams& params);
  void Compute(const SelectTopKParams& params);
  void Compute(const AbsorbQueryParams& params);
  void Compute(const LatentAttentionParams& params);
  void Compute(const ExpandValueParams& params);
  void Compute(const MaskedAttentionParams& params);
  void Compute(const SwiGluParams& params);
  void Compute(const UpdateBlockTablesParams& params);
  void Compute(const GateParams& params);
  void Compute(const RoutedExpertsParams& params);
  void Compute(const SampleParams& params);
  void Compute(const AllReduceParams& params);
  void Compute(const AllGatherParams& params);
  void Compute(const DispatchParams& params);
  void Compute(const CombineParams& params);
  static bool Meet(const CpuSeat& seat, const CollectiveCall& call, const void* params);
  CpuSeat PartSeat() const;

  // Calls `operation`, or keeps a copy of it where a graph is being recorded.
  template <typename Operation>
  void Queue(const Operation& operation);
  // CHECK-fails while a graph is being recorded.
  void CheckNotRecording(const char* call) const;

  void Touch(void* data, std::size_t bytes);
  // CHECK-fails before ReserveScratch or where `rows` exceeds its tokens_max.
  const CpuScratch& ScratchFor(std::int64_t rows) const;

  const CpuSeat seat_;
  ThreadPool pool_;
  std::unique_ptr<CpuScratch> scratch_;
  using Graph = std::vector<std::function<void()>>;
  std::map<GraphId, Graph> graphs_;
  Graph* recording_ = nullptr;
  std::uint32_t marked_ = 0;  // events that were marked, a bit each
};

}  // namespace dsa
