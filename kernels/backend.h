// A device that can run the model: its memory, its stream and one method per op.
//
// Each op has its own header under kernels/ops/ (parameters, equation, checks) and one source file
// per backend that defines just that method.  A backend is used by one thread at a time
// (BindThread); its ops are queued in order on its stream and return before they have run, except
// on the CPU.  Every pointer in a
// params struct is device memory of this backend.  Ops allocate nothing: what they need beside
// their parameters is scratch of the backend, sized once by ReserveScratch.
//
// Include the header of each op that you call: this one only names its params.
#pragma once

#include "common/status.h"
#include "common/view.h"
#include "kernels/backend_buffer.h"
#include "kernels/op_params.h"
#include "kernels/scratch_limits.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace dsa {

class Backend;
struct PagedRows;

// Names a recorded sequence of ops.  Small numbers, chosen by the caller.
enum class GraphId : std::int32_t {};

// Events of Mark and WaitFor are numbered from 0.
inline constexpr int kEvents = 8;

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  virtual std::string Name() const = 0;  // "cpu (2 threads)", "NVIDIA H100 80GB HBM3"

  // Makes the calling thread the one that uses the backend; the thread that made it is bound by
  // that.  A thread that takes over calls this first, and the one before makes no further call
  // meanwhile.
  virtual void BindThread() = 0;

  // Memory.  Contents are undefined; 256-byte aligned.  FAILED_PRECONDITION with needed and free
  // bytes where the device, or the host, has not enough.
  virtual Result<DeviceBuffer> Allocate(std::size_t bytes) = 0;
  virtual void Free(void* data) = 0;
  virtual Result<HostBuffer> AllocateHost(std::size_t bytes) = 0;
  virtual void FreeHost(void* data) = 0;
  // Bytes that Allocate and ReserveScratch can still take; others may take them first.
  virtual std::int64_t AvailableBytes() const = 0;

  // Copies of any host memory, queued in stream order, for everything but a step.  `source` of
  // CopyToDevice may be reused after the call returns, pinned or not (of pinned memory the call
  // waits until the device has read it); `target` of CopyToHost is filled after Synchronize.
  virtual void CopyToDevice(void* target, const void* source, std::size_t bytes) = 0;
  virtual void CopyToHost(void* target, const void* source, std::size_t bytes) = 0;

  // Copies of a step, queued in stream order; neither waits.  The bytes of `source` from `offset`
  // on are read when the device gets there: leave them alone until a Mark behind the Upload was
  // waited for.  `target` is filled when a Mark behind the Download was waited for.
  virtual void Upload(void* target, const HostBuffer& source, std::size_t offset,
                      std::size_t bytes) = 0;
  virtual void Download(const HostBuffer& target, std::size_t offset, const void* source,
                        std::size_t bytes) = 0;
  virtual void Zero(void* target, std::size_t bytes) = 0;

  // Mark queues `event`, in [0, kEvents); WaitFor blocks the host until its last Mark has run, and
  // everything queued before it.  An event may be marked again and again.
  virtual void Mark(int event) = 0;
  virtual void WaitFor(int event) = 0;
  // For weights without a checkpoint; of no step.  kernels/ops/fill_random.h.
  virtual void FillRandom(const FillRandomParams& params) = 0;
  // Waits until everything queued so far has run.
  virtual void Synchronize() = 0;

  // Record keeps what `body` queues, in place of what `graph` held before, and queues nothing;
  // Replay queues it, any number of times, without calling `body`.  So a body must queue the same
  // for every step that replays it: all that may change lies in device memory or in the HostBuffers
  // it uploads, and a number, size or pointer that it takes from elsewhere on the host stays what
  // it was.  It may call ops, Upload, Download and Zero, nothing else.
  virtual void Record(GraphId graph, const std::function<void()>& body) = 0;
  virtual void Replay(GraphId graph) = 0;

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
  virtual void UpdateBlockTables(const UpdateBlockTablesParams& params) = 0;
  virtual void Gate(const GateParams& params) = 0;
  virtual void RoutedExperts(const RoutedExpertsParams& params) = 0;
  virtual void Sample(const SampleParams& params) = 0;

  // Collectives; CHECK-fail on a backend that is no rank of a group.
  virtual void AllReduce(const AllReduceParams& params);
  virtual void AllGather(const AllGatherParams& params);
  virtual void Dispatch(const DispatchParams& params);
  virtual void Combine(const CombineParams& params);
  // Of a rank's part of a product that AllReduce rounds: f64 or f32.
  virtual DataType PartialSumType() const { return DataType::kF32; }

  // Decides how the keys of attention's rows are split over the device: once per step, before its
  // first attention, for all layers.  By default a split may follow the whole batch; with
  // `batch_invariant` it follows the row's own number of keys alone.  Only where splits are summed
  // apart does a result depend on it; the CPU splits no row.
  virtual void PlanAttention(const PagedRows& /*rows*/, std::int64_t /*heads*/,
                             bool /*batch_invariant*/) {}

  // Whether queries are best absorbed by Project, given these; else by what comes behind it.
  virtual bool AbsorbsInProject(const ProjectParams& /*params*/) const { return false; }

  // Fused ops (kernels/fused/): several plain ones in one call.  The default body is the
  // definition: plain ops in order, on the work memory in the params.  An override is held to it
  // (kernels/override_check.h).
  virtual void AddNorm(const AddNormParams& params);
  virtual void Project(const ProjectParams& params);
  virtual void WriteKeys(const WriteKeysParams& params);
  virtual void SelectKeys(const SelectKeysParams& params);
  virtual void AttendLatent(const AttendLatentParams& params);
  virtual void AttendMasked(const AttendMaskedParams& params);
  virtual void GatedMlp(const GatedMlpParams& params);
  virtual void ExpertMlp(const ExpertMlpParams& params);
};

}  // namespace dsa
