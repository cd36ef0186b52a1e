// The Hopper backend (sm_90a).  Host code may include this header: it names no CUDA type.
#pragma once

#include "kernels/backend.h"

#include <memory>
#include <span>

struct CUstream_st;  // *cudaStream_t

namespace dsa {
namespace cuda {
struct ExchangeTable;
struct PeerSeat;
struct PeerTable;
struct RotateAndAbsorbParams;
}  // namespace cuda
struct CollectiveCall;
struct ExpertRange;
class ThreadGroup;

class CudaBackend final : public Backend {
 public:
  // FAILED_PRECONDITION where the device does not exist or is not of compute capability 9.0.
  static Result<std::unique_ptr<CudaBackend>> Make(int device);
  ~CudaBackend() override;

  // Makes each backend a rank of `group`, which outlives them; before they queue anything.  The
  // ranks of a part reduce and gather among themselves; those of several exchange rows of experts.
  // Ranks may share a device, where there is room for the kernels of all at once.
  // FAILED_PRECONDITION where a device does not see another one's memory, or has not PeerBytes.
  static Status JoinPeers(std::span<CudaBackend* const> ranks, ThreadGroup& group);
  // Device memory that JoinPeers takes on each rank of such a group.
  static std::int64_t PeerBytes(int ranks, int parts);
  // Whether each of the devices sees every other one's memory; FAILED_PRECONDITION naming two.
  static Status CheckPeerAccess(std::span<CudaBackend* const> ranks);
  // As JoinPeers, over NCCL (kernels/cuda/nccl.h): ranks on different devices, which need not see
  // each other's memory.  Sums are in NCCL's order.  FAILED_PRECONDITION where NCCL is absent, too
  // old, told something else than NcclVariables or fails; ends the process, naming them, where
  // ranks do not come.
  static Status JoinNccl(std::span<CudaBackend* const> ranks, ThreadGroup& group);
  // Device memory of ours that JoinNccl takes on each rank; NCCL takes some by itself.
  static std::int64_t NcclBytes();

  // What ops are queued on, for callers that time them on the device.
  CUstream_st* stream() const;
  // Nodes of a recorded graph: kernels, copies and memsets.
  std::int64_t RecordedNodes(GraphId graph) const;

  std::string Name() const override;
  void BindThread() override;
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
  void PlanAttention(const PagedRows& rows, std::int64_t heads, bool batch_invariant) override;
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

  bool AbsorbsInProject(const ProjectParams& params) const override;
  void AddNorm(const AddNormParams& params) override;
  void Project(const ProjectParams& params) override;
  void WriteKeys(const WriteKeysParams& params) override;
  void SelectKeys(const SelectKeysParams& params) override;
  void AttendLatent(const AttendLatentParams& params) override;
  void GatedMlp(const GatedMlpParams& params) override;
  void ExpertMlp(const ExpertMlpParams& params) override;

 private:
  struct State;  // kernels/cuda/cuda_state.h
  explicit CudaBackend(std::unique_ptr<State> state);
  // CHECK-fails while a graph is being recorded.
  void CheckNotRecording(const char* call) const;
  // Rope and AbsorbQuery, in one launch where they can.
  void RotateAndAbsorb(const cuda::RotateAndAbsorbParams& params);
  // Where the ranks of a collective meet on their devices; null once the group has failed.
  // CHECK-fails of a backend in no group.
  const cuda::PeerTable* Peers(const CollectiveCall& call, const cuda::PeerSeat& seat);
  const cuda::ExchangeTable* Exchange(const CollectiveCall& call, const ExpertRange& here,
                                      std::int64_t copies);
  void AllReduceByNccl(const AllReduceParams& params);
  void AllGatherByNccl(const AllGatherParams& params);

  std::unique_ptr<State> state_;
};

}  // namespace dsa
