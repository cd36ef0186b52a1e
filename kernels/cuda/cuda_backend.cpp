// The backend's device, its memory and scratch; graphs.cpp has what is queued on its stream.
#include "kernels/cuda/cuda_backend.h"

#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/device_check.h"
#include "kernels/cuda/expert_exchange.h"
#include "kernels/cuda/latent_attention.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch_arena.h"
#include "kernels/cuda/scratch_bytes.h"

#include <algorithm>
#include <string>

namespace dsa {
namespace {

Error Unavailable(const std::string& what) {
  return {ErrorCode::kFailedPrecondition, what};
}

// What the device says before it has done anything for us is the machine's state, not a bug.
Status CheckStart(const char* what, cudaError_t status) {
  if (status == cudaSuccess) {
    return {};
  }
  return Unavailable(std::string(what) + ": " + cudaGetErrorString(status));
}

Status CheckDriver() {
  int driver = 0;  // stays 0 where there is none
  DSA_RETURN_IF_ERROR(CheckStart("asking for the driver", cudaDriverGetVersion(&driver)));
  return cuda::CheckDriverVersion(driver);
}

// Makes a device the thread's for a moment: memory is asked for by whoever loads a model, for many.
class OnDevice final {
 public:
  explicit OnDevice(int device) {
    DSA_CUDA_CHECK(cudaGetDevice(&before_));
    if (device != before_) {
      DSA_CUDA_CHECK(cudaSetDevice(device));
    }
  }
  ~OnDevice() { DSA_CUDA_CHECK(cudaSetDevice(before_)); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

// What the ops share: the most that one of them takes.
std::int64_t OpScratchBytes(const ScratchLimits& all, bool exchanges) {
  ScratchLimits limits = all;
  ScratchLimits of_parts = all;
  if (exchanges) {  // where parts, if any, are of few rows of all ranks
    limits.expert_sum_type = DataType::kF32;
    of_parts.tokens_max = std::min(all.tokens_max, cuda::kPeersMax * cuda::kExchangeRowsMax);
  }
  return std::max(
      {cuda::RoutedExpertsScratchBytes(of_parts), cuda::GateScratchBytes(limits),
       cuda::RoutedExpertsScratchBytes(limits), cuda::LatentAttentionScratchBytes(limits),
       cuda::MaskedAttentionScratchBytes(limits), cuda::SelectKeysScratchBytes(limits)});
}

// A group of one has an exchange too, and may stand for a tensor rank, whose sums leave it
// unrounded.
bool HasDataRanks(const cuda::ExchangeSeat* exchange) {
  return exchange != nullptr && exchange->table.peers.ranks > 1;
}

}  // namespace

CudaBackend::CudaBackend(std::unique_ptr<State> state) : state_(std::move(state)) {}

Result<std::unique_ptr<CudaBackend>> CudaBackend::Make(int device) {
  DSA_RETURN_IF_ERROR(CheckDriver());
  int devices = 0;
  DSA_RETURN_IF_ERROR(CheckStart("counting devices", cudaGetDeviceCount(&devices)));
  if (device < 0 || device >= devices) {
    return Unavailable("this machine has " + std::to_string(devices) + " CUDA devices");
  }
  cudaDeviceProp properties{};
  DSA_RETURN_IF_ERROR(
      CheckStart("reading its properties", cudaGetDeviceProperties(&properties, device)));
  DSA_RETURN_IF_ERROR(cuda::CheckArchitecture(properties.name, properties.major, properties.minor));
  DSA_RETURN_IF_ERROR(cuda::CheckMultiprocessors(properties.name, properties.multiProcessorCount));
  auto state = std::make_unique<State>();
  state->device = device;
  state->multiprocessors = properties.multiProcessorCount;
  state->name = properties.name;
  DSA_RETURN_IF_ERROR(CheckStart("taking it", cudaSetDevice(device)));
  DSA_RETURN_IF_ERROR(CheckStart("making a stream",
                                 cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking)));
  state->graphs.Open();
  std::unique_ptr<CudaBackend> backend(new CudaBackend(std::move(state)));
  DSA_RETURN_IF_ERROR(backend->state_->gemm.Open(*backend));
  return Result<std::unique_ptr<CudaBackend>>(std::move(backend));
}

CudaBackend::~CudaBackend() {
  BindThread();
  DSA_CUDA_CHECK(cudaStreamSynchronize(state_->stream));
  DSA_CUDA_CHECK(cudaStreamDestroy(state_->stream));
}

CUstream_st* CudaBackend::stream() const {
  return state_->stream;
}

std::string CudaBackend::Name() const {
  return state_->name;
}

void CudaBackend::BindThread() {
  DSA_CUDA_CHECK(cudaSetDevice(state_->device));
}

Result<DeviceBuffer> CudaBackend::Allocate(std::size_t bytes) {
  if (bytes == 0) {
    return DeviceBuffer(this, nullptr, 0);
  }
  const OnDevice bound(state_->device);
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();  // not sticky: the context lives on
    std::size_t free_bytes = 0;
    std::size_t total_bytes = 0;
    DSA_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
    return Unavailable("device memory: " + std::to_string(bytes) + " bytes needed, " +
                       std::to_string(free_bytes) + " free of " + std::to_string(total_bytes));
  }
  DSA_CUDA_CHECK(status);
  return DeviceBuffer(this, data, bytes);
}

void CudaBackend::Free(void* data) {
  const OnDevice bound(state_->device);
  DSA_CUDA_CHECK(cudaFree(data));
}

std::int64_t CudaBackend::AvailableBytes() const {
  const OnDevice bound(state_->device);
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  DSA_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  return static_cast<std::int64_t>(free_bytes);
}

std::int64_t CudaScratchBytes(const ScratchLimits& limits, bool has_data_ranks) {
  return cuda::Gemm::ScratchBytes(limits.tokens_max, limits.linear_width_max) +
         OpScratchBytes(limits, has_data_ranks) + cuda::kAttentionCounterBytes +
         cuda::kFewHeadsPartBytes + static_cast<std::int64_t>(sizeof(unsigned));  // rows_ready
}

std::int64_t CudaBackend::ScratchBytes(const ScratchLimits& limits) const {
  return CudaScratchBytes(limits, HasDataRanks(state_->exchange.get()));
}

Status CudaBackend::ReserveScratch(const ScratchLimits& limits) {
  DSA_CHECK(!state_->scratch_reserved, "CudaBackend: ReserveScratch was called before");
  state_->limits = limits;
  state_->scratch_reserved = true;
  DSA_ASSIGN_OR_RETURN(state_->scratch,
                       Allocate(OpScratchBytes(limits, HasDataRanks(state_->exchange.get()))));
  DSA_ASSIGN_OR_RETURN(state_->attention_counters, Allocate(cuda::kAttentionCounterBytes));
  Zero(state_->attention_counters.data(), cuda::kAttentionCounterBytes);
  DSA_ASSIGN_OR_RETURN(state_->rows_ready, Allocate(sizeof(unsigned)));
  Zero(state_->rows_ready.data(), sizeof(unsigned));
  DSA_ASSIGN_OR_RETURN(state_->attention_parts, Allocate(cuda::kFewHeadsPartBytes));
  DSA_CUDA_CHECK(cudaMemsetAsync(state_->attention_parts.data(), 0xFF, cuda::kFewHeadsPartBytes,
                                 state_->stream));
  return state_->gemm.Reserve(*this, limits.tokens_max, limits.linear_width_max);
}

}  // namespace dsa
