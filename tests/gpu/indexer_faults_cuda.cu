// The indexer's faults of tests/model/indexer_faults.h on a CudaBackend: the same falsehoods, told
// by kernels behind or before the op, so that recorded decode steps tell them as well.
#include "common/check.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/element.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/forwarding_backend.h"
#include "kernels/kv_layout.h"
#include "kernels/ops/prepare_indexer_query.h"
#include "kernels/ops/select_top_k.h"
#include "kernels/ops/store_indexer_key.h"
#include "tests/model/indexer_faults.h"

#include <algorithm>
#include <cfloat>
#include <vector>

namespace dsa::testing {
namespace {

constexpr int kThreads = 256;
constexpr int kFp8Max = 448;

// Scores of this row and key that know nothing of either.
__global__ void DrawScores(Matrix<float> scores) {
  float* const row = scores.data + blockIdx.x * scores.row_stride;
  for (std::int64_t key = threadIdx.x; key < scores.cols; key += kThreads) {
    std::uint32_t bits = static_cast<std::uint32_t>(key) * 2654435761U + blockIdx.x * 40503U;
    bits ^= bits >> 15;
    bits *= 2246822519U;
    bits ^= bits >> 13;
    row[key] = static_cast<float>(bits >> 8);
  }
}

// Key p gets the score of key p + 64.
__global__ void ShiftScores(Matrix<float> scores) {
  float* const row = scores.data + blockIdx.x * scores.row_stride;
  for (std::int64_t first = 0; first < scores.cols; first += kThreads) {
    const std::int64_t key = first + threadIdx.x;
    const std::int64_t from = key + kTokensPerBlock;
    const float score = from < scores.cols ? row[from] : -FLT_MAX;
    __syncthreads();  // all of this turn are read; what the next turn reads lies behind them
    if (key < scores.cols) {
      row[key] = score;
    }
    __syncthreads();
  }
}

// Takes the Hadamard transform, which is its own inverse, back from a prepared query.  A block per
// head, a thread per value.
__global__ void TakeHadamardBack(AnyTensor3 queries, Matrix<float> weights) {
  __shared__ float values[kIndexerValues];
  __shared__ float largest;
  const int i = static_cast<int>(threadIdx.x);
  auto* const head = static_cast<__nv_fp8_e4m3*>(queries.data) + blockIdx.x * queries.row_stride +
                     blockIdx.y * queries.head_stride;
  values[i] = static_cast<float>(head[i]);
  __syncthreads();
  float sum = 0;
  for (int j = 0; j < kIndexerValues; ++j) {
    sum += __popc(i & j) % 2 == 0 ? values[j] : -values[j];
  }
  sum *= rsqrtf(kIndexerValues);
  __syncthreads();
  values[i] = fabsf(sum);
  __syncthreads();
  if (i == 0) {
    largest = 0;
    for (const float value : values) {
      largest = fmaxf(largest, value);
    }
  }
  __syncthreads();
  const float scale = exp2f(ceilf(log2f(fmaxf(largest, 1e-4F) / kFp8Max)));
  head[i] = __nv_fp8_e4m3(sum / scale);
  if (i == 0) {
    weights.data[blockIdx.x * weights.row_stride + blockIdx.y] *= scale;
  }
}

__global__ void ZeroKeys(StoreIndexerKeyParams params, const std::uint8_t* is_zeroed,
                         std::int64_t positions) {
  const std::int32_t position = params.positions.data[blockIdx.x];
  if (position < positions && is_zeroed[position] != 0) {
    const std::int64_t slot = params.slots.data[blockIdx.x];
    std::uint8_t* const block = params.cache.data + slot / kTokensPerBlock * IndexerBlock::kBytes;
    block[IndexerBlock::Values(static_cast<int>(slot % kTokensPerBlock)) + threadIdx.x] = 0;
  }
}

class FaultyIndexer : public ForwardingBackend {
 public:
  explicit FaultyIndexer(Backend& inner)
      : ForwardingBackend(inner), stream_(dynamic_cast<CudaBackend&>(inner).stream()) {}

 protected:
  CUstream_st* stream() const { return stream_; }

 private:
  CUstream_st* const stream_;
};

// SelectTopK of scores that `kernel` has changed in place: they are work memory, read by nobody
// else.
class ChangedScores final : public FaultyIndexer {
 public:
  using Kernel = void (*)(Matrix<float> scores);
  ChangedScores(Backend& inner, Kernel kernel) : FaultyIndexer(inner), kernel_(kernel) {}
  void SelectTopK(const SelectTopKParams& params) override {
    const Matrix<float> scores{.data = const_cast<float*>(params.scores.data),
                               .rows = params.scores.rows,
                               .cols = params.scores.cols,
                               .row_stride = params.scores.row_stride};
    kernel_<<<static_cast<unsigned>(scores.rows), kThreads, 0, stream()>>>(scores);
    DSA_CUDA_CHECK(cudaGetLastError());
    inner_.SelectTopK(params);
  }

 private:
  const Kernel kernel_;
};

class NoQueryHadamard final : public FaultyIndexer {
 public:
  using FaultyIndexer::FaultyIndexer;
  void PrepareIndexerQuery(const PrepareIndexerQueryParams& params) override {
    DSA_CHECK(params.format == KvFormat::kFp8, "NoQueryHadamard: format {}",
              static_cast<int>(params.format));
    inner_.PrepareIndexerQuery(params);
    const dim3 heads(static_cast<unsigned>(params.queries.rows),
                     static_cast<unsigned>(params.queries.heads));
    TakeHadamardBack<<<heads, kIndexerValues, 0, stream()>>>(params.queries, params.weights);
    DSA_CUDA_CHECK(cudaGetLastError());
  }
};

class ZeroedIndexKeys final : public FaultyIndexer {
 public:
  ZeroedIndexKeys(Backend& inner, const std::set<std::int32_t>& positions)
      : FaultyIndexer(inner), positions_(positions) {
    auto memory = inner.Allocate(kPositions);
    DSA_CHECK(memory.ok(), "{}", std::string_view(memory.error().message));
    is_zeroed_ = std::move(memory).value();
    inner.Zero(is_zeroed_.data(), kPositions);
  }
  void Record(GraphId graph, const std::function<void()>& body) override {
    is_recording_ = true;
    ForwardingBackend::Record(graph, body);
    is_recording_ = false;
  }
  void StoreIndexerKey(const StoreIndexerKeyParams& params) override {
    DSA_CHECK(params.cache.format == KvFormat::kFp8, "ZeroedIndexKeys: format {}",
              static_cast<int>(params.cache.format));
    if (!is_recording_ && uploaded_ != positions_) {  // prefill, which stores the facts, is eager
      std::vector<std::uint8_t> bytes(kPositions);
      for (const std::int32_t position : positions_) {
        bytes.at(static_cast<std::size_t>(position)) = 1;
      }
      inner_.CopyToDevice(is_zeroed_.data(), bytes.data(), bytes.size());
      uploaded_ = positions_;
    }
    inner_.StoreIndexerKey(params);
    ZeroKeys<<<static_cast<unsigned>(params.positions.size), kIndexerValues, 0, stream()>>>(
        params, is_zeroed_.As<std::uint8_t>(), kPositions);
    DSA_CUDA_CHECK(cudaGetLastError());
  }

 private:
  static constexpr std::int64_t kPositions = 1 << 17;

  const std::set<std::int32_t>& positions_;
  std::set<std::int32_t> uploaded_;
  DeviceBuffer is_zeroed_;
  bool is_recording_ = false;
};

}  // namespace

std::unique_ptr<Backend> WithoutQueryHadamard(Backend& inner) {
  return std::make_unique<NoQueryHadamard>(inner);
}

std::unique_ptr<Backend> WithRandomSelection(Backend& inner) {
  return std::make_unique<ChangedScores>(inner, DrawScores);
}

std::unique_ptr<Backend> WithShiftedSelection(Backend& inner) {
  return std::make_unique<ChangedScores>(inner, ShiftScores);
}

std::unique_ptr<Backend> WithZeroedIndexKeys(Backend& inner,
                                             const std::set<std::int32_t>& positions) {
  return std::make_unique<ZeroedIndexKeys>(inner, positions);
}

}  // namespace dsa::testing
