// UpdateBlockTables: one block of 64 threads an update.  A steady decode step changes one entry in
// 64 rows; a prefix hit of 128K tokens writes 2,048 of one row, 32 a thread.
#include "kernels/cuda/dependent_launch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/update_block_tables.h"

namespace dsa {
namespace {

constexpr int kThreads = 64;

__global__ __launch_bounds__(kThreads) void UpdateBlockTablesKernel(const TableUpdate* updates,
                                                                    const std::int32_t* blocks,
                                                                    Matrix<std::int32_t> tables) {
  cuda::StartAfterPredecessors();
  const TableUpdate update = updates[blockIdx.x];
  std::int32_t* to = tables.data + update.row * tables.row_stride + update.first;
  const std::int32_t* from = blocks + update.source;
  for (std::int32_t i = threadIdx.x; i < update.count; i += kThreads) {
    to[i] = from[i];
  }
}

}  // namespace

void cuda::UpdateBlockTables(const UpdateBlockTablesParams& params, cudaStream_t stream) {
  const UpdateBlockTablesExtents extents = Validate(params);
  if (extents.updates == 0) {
    return;
  }
  cuda::LaunchDependent(UpdateBlockTablesKernel,
                        {.grid = static_cast<unsigned>(extents.updates), .threads = kThreads},
                        stream, params.updates.data, params.blocks.data, params.tables);
}

}  // namespace dsa
