// What a step queues beside its ops: copies of pinned memory, events, and graphs.  A graph is what
// the stream captured while the body ran: one launch a replay, no host work per node.
#include "kernels/cuda/graphs.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace dsa {
namespace {

// A memset would keep its neighbours in the chain of launches from overlapping.
constexpr std::size_t kSmallZeroBytes = 4096;

}  // namespace

namespace cuda {

Graphs::~Graphs() {
  for (const auto& [graph, executable] : graphs_) {
    DSA_CUDA_CHECK(cudaGraphExecDestroy(executable));
  }
  for (const cudaEvent_t event : events_) {
    if (event != nullptr) {
      DSA_CUDA_CHECK(cudaEventDestroy(event));
    }
  }
}

void Graphs::Open() {
  for (cudaEvent_t& event : events_) {
    DSA_CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  }
}

void Graphs::Record(cudaStream_t stream, GraphId graph, const std::function<void()>& body) {
  cudaGraph_t captured = nullptr;
  DSA_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  is_recording_ = true;
  body();
  is_recording_ = false;
  DSA_CUDA_CHECK(cudaStreamEndCapture(stream, &captured));
  cudaGraphExec_t& executable = graphs_[graph];
  if (executable != nullptr) {
    DSA_CUDA_CHECK(cudaGraphExecDestroy(executable));
  }
  DSA_CUDA_CHECK(cudaGraphInstantiate(&executable, captured, 0));
  std::size_t nodes = 0;
  DSA_CUDA_CHECK(cudaGraphGetNodes(captured, nullptr, &nodes));
  nodes_[graph] = static_cast<std::int64_t>(nodes);
  DSA_CUDA_CHECK(cudaGraphDestroy(captured));
  // The first launch need not carry it to the device.
  DSA_CUDA_CHECK(cudaGraphUpload(executable, stream));
}

void Graphs::Replay(cudaStream_t stream, GraphId graph) const {
  const auto found = graphs_.find(graph);
  DSA_CHECK(found != graphs_.end(), "CudaBackend: graph {} was never recorded",
            static_cast<int>(graph));
  DSA_CUDA_CHECK(cudaGraphLaunch(found->second, stream));
}

void Graphs::Mark(cudaStream_t stream, int event) const {
  DSA_CHECK(event >= 0 && event < kEvents, "Mark: event {} of {}", event, kEvents);
  DSA_CUDA_CHECK(cudaEventRecord(events_[static_cast<std::size_t>(event)], stream));
}

void Graphs::WaitFor(int event) const {
  DSA_CHECK(event >= 0 && event < kEvents, "WaitFor: event {} of {}", event, kEvents);
  DSA_CUDA_CHECK(cudaEventSynchronize(events_[static_cast<std::size_t>(event)]));
}

}  // namespace cuda

std::int64_t CudaBackend::RecordedNodes(GraphId graph) const {
  return state_->graphs.nodes(graph);
}

void CudaBackend::CheckNotRecording(const char* call) const {
  DSA_CHECK(!state_->graphs.is_recording(), "CudaBackend: {} while a graph is recorded",
            std::string_view(call));
}

Result<HostBuffer> CudaBackend::AllocateHost(std::size_t bytes) {
  void* data = nullptr;
  if (bytes > 0 && cudaMallocHost(&data, bytes) != cudaSuccess) {
    (void)cudaGetLastError();  // not sticky: the context lives on
    return Error{.code = ErrorCode::kFailedPrecondition,
                 .message = "pinned host memory: " + std::to_string(bytes) +
                            " bytes needed, the driver has not so many"};
  }
  return HostBuffer(this, data, bytes);
}

void CudaBackend::FreeHost(void* data) {
  DSA_CUDA_CHECK(cudaFreeHost(data));
}

void CudaBackend::CopyToDevice(void* target, const void* source, std::size_t bytes) {
  CheckNotRecording("CopyToDevice");
  if (bytes == 0) {
    return;
  }
  DSA_CUDA_CHECK(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, state_->stream));
  // Pageable memory has been read by now, pinned memory has not.
  cudaPointerAttributes attributes{};
  DSA_CUDA_CHECK(cudaPointerGetAttributes(&attributes, source));
  if (attributes.type == cudaMemoryTypeHost) {
    DSA_CUDA_CHECK(cudaStreamSynchronize(state_->stream));
  }
}

void CudaBackend::CopyToHost(void* target, const void* source, std::size_t bytes) {
  CheckNotRecording("CopyToHost");
  DSA_CUDA_CHECK(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, state_->stream));
}

void CudaBackend::Upload(void* target, const HostBuffer& source, std::size_t offset,
                         std::size_t bytes) {
  DSA_CHECK(offset <= source.bytes() && bytes <= source.bytes() - offset,
            "Upload: bytes {} + {} of a buffer of {}", offset, bytes, source.bytes());
  DSA_CUDA_CHECK(cudaMemcpyAsync(target, source.As<std::byte>() + offset, bytes,
                                 cudaMemcpyHostToDevice, state_->stream));
}

void CudaBackend::Download(const HostBuffer& target, std::size_t offset, const void* source,
                           std::size_t bytes) {
  DSA_CHECK(offset <= target.bytes() && bytes <= target.bytes() - offset,
            "Download: bytes {} + {} of a buffer of {}", offset, bytes, target.bytes());
  DSA_CUDA_CHECK(cudaMemcpyAsync(target.As<std::byte>() + offset, source, bytes,
                                 cudaMemcpyDeviceToHost, state_->stream));
}

void CudaBackend::Zero(void* target, std::size_t bytes) {
  if (bytes == 0) {
    return;
  }
  if (bytes <= kSmallZeroBytes) {
    cuda::ZeroFew(target, bytes, state_->stream);
    return;
  }
  DSA_CUDA_CHECK(cudaMemsetAsync(target, 0, bytes, state_->stream));
}

void CudaBackend::Mark(int event) {
  CheckNotRecording("Mark");
  state_->graphs.Mark(state_->stream, event);
}

void CudaBackend::WaitFor(int event) {
  CheckNotRecording("WaitFor");
  state_->graphs.WaitFor(event);
}

void CudaBackend::Synchronize() {
  CheckNotRecording("Synchronize");
  DSA_CUDA_CHECK(cudaStreamSynchronize(state_->stream));
}

void CudaBackend::Record(GraphId graph, const std::function<void()>& body) {
  CheckNotRecording("Record");
  state_->graphs.Record(state_->stream, graph, body);
}

void CudaBackend::Replay(GraphId graph) {
  CheckNotRecording("Replay");
  state_->graphs.Replay(state_->stream, graph);
}

}  // namespace dsa
