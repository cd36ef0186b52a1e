// The ops by their kernels: each function checks its parameters and queues on `stream`, capture
// included.  They know no backend, so that its interface may change without compiling a kernel;
// CudaBackend's methods call them (ops.cpp) with what it holds.  For kernels/cuda/ only.
#pragma once

#include "kernels/backend_buffer.h"
#include "kernels/op_params.h"

#include <cstddef>

#include <cuda_runtime_api.h>

namespace dsa {

struct ScratchLimits;

namespace cuda {

void AbsorbQuery(const AbsorbQueryParams& params, cudaStream_t stream);
void Embed(const EmbedParams& params, cudaStream_t stream);
void ExpandValue(const ExpandValueParams& params, cudaStream_t stream);
// Waits until the values are there.
void FillRandom(const FillRandomParams& params, cudaStream_t stream);
void GatherRows(const GatherRowsParams& params, cudaStream_t stream);
void IndexerLogits(const IndexerLogitsParams& params, cudaStream_t stream);
void PrepareIndexerQuery(const PrepareIndexerQueryParams& params, cudaStream_t stream);
void QuantizeFp8(const QuantizeFp8Params& params, cudaStream_t stream);
void RmsNorm(const RmsNormParams& params, cudaStream_t stream);
void Rope(const RopeParams& params, cudaStream_t stream);
void Sample(const SampleParams& params, cudaStream_t stream);
void SelectTopK(const SelectTopKParams& params, cudaStream_t stream);
void StoreIndexerKey(const StoreIndexerKeyParams& params, cudaStream_t stream);
void StoreLatent(const StoreLatentParams& params, cudaStream_t stream);
void SwiGlu(const SwiGluParams& params, cudaStream_t stream);
void UpdateBlockTables(const UpdateBlockTablesParams& params, cudaStream_t stream);
// What Backend::Zero does with some kilobytes at most.
void ZeroFew(void* target, std::size_t bytes, cudaStream_t stream);

// Of ops that work in scratch, sized by scratch_arena.h.
// `counters`: two words, zero between ops.
void Gate(const GateParams& params, const DeviceBuffer& scratch, unsigned* counters,
          cudaStream_t stream);
void MaskedAttention(const MaskedAttentionParams& params, const ScratchLimits& limits,
                     const DeviceBuffer& memory, cudaStream_t stream);
void RoutedExperts(const RoutedExpertsParams& params, const DeviceBuffer& scratch,
                   cudaStream_t stream);

// Linear and BlockScaledLinear, checked before, of what no faster product takes.  CHECK-fail where
// the weight is so large that this would take a hundred times as long as it should.
void PlainLinear(const LinearParams& params, cudaStream_t stream);
void PlainBlockScaledLinear(const BlockScaledLinearParams& params, cudaStream_t stream);

// Fused ops.  False, having queued nothing, where they do not take the parameters: then the default
// body does the same.
bool AddNorm(const AddNormParams& params, cudaStream_t stream);
bool WriteKeys(const WriteKeysParams& params, cudaStream_t stream);

}  // namespace cuda
}  // namespace dsa
