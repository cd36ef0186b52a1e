// What the CPU ops need beside their parameters.  Sized once by CpuBackend::ReserveScratch, so that
// no op allocates.  Each family of ops has its own struct here and its own lines in scratch.cpp.
#pragma once

#include "kernels/backend.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace dsa {

namespace scratch_internal {
void* Allocate(std::size_t bytes);  // 64-byte aligned; std::bad_alloc
void Release(void* data);
}  // namespace scratch_internal

// Memory for trivial values, 64-byte aligned, contents undefined.  Made by a ScratchMaker.
template <typename T>
class ScratchArray final {
 public:
  ScratchArray() = default;

  T* data() const { return static_cast<T*>(data_.get()); }
  std::int64_t size() const { return size_; }

 private:
  friend class ScratchMaker;
  explicit ScratchArray(std::int64_t count)
      : size_(count),
        data_(scratch_internal::Allocate(static_cast<std::size_t>(count) * sizeof(T))) {}

  struct Release {
    void operator()(void* data) const { scratch_internal::Release(data); }
  };

  std::int64_t size_ = 0;
  std::unique_ptr<void, Release> data_;
};

// Makes the arrays of a CpuScratch, or only adds up their bytes: one code for both, so that what is
// planned is what is allocated.
class ScratchMaker final {
 public:
  enum class Mode { kAllocate, kMeasure };
  explicit ScratchMaker(Mode mode) : mode_(mode) {}

  // Empty where it only measures.  std::bad_alloc where there is no memory.
  template <typename T>
  ScratchArray<T> Array(std::int64_t count) {
    bytes_ += count * static_cast<std::int64_t>(sizeof(T));
    return mode_ == Mode::kAllocate ? ScratchArray<T>(count) : ScratchArray<T>();
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  Mode mode_;
  std::int64_t bytes_ = 0;
};

// Per thread; kernels/cpu/matmul.h.
struct MatmulScratch {
  ScratchArray<float> inputs;        // decoded rows of x
  ScratchArray<double> wide_inputs;  // the same, times what weights leave to them
};

// Rows are (token, k) pairs, grouped by expert.
struct ExpertScratch {
  ScratchArray<std::int32_t> offsets;  // [E + 1]  first row of each expert
  ScratchArray<std::int32_t> pairs;    // [T * K]  token * K + k of each row
  ScratchArray<std::int32_t> tokens;   // [T * K]  token of each row
  ScratchArray<std::byte> inputs;      // [T, D]  x in fp8
  ScratchArray<float> input_scales;    // [T, ceil(D / 128)]
  ScratchArray<float> gate;            // [T * K, I]  in the activation type
  ScratchArray<float> up;              // [T * K, I]  in the activation type
  ScratchArray<std::byte> inner;       // [T * K, I]  SwiGLU output in fp8
  ScratchArray<float> inner_scales;    // [T * K, ceil(I / 128)]
  ScratchArray<float> contributions;   // [T * K, D]  in the activation type, or in f64
  ScratchArray<float> gate_logits;     // [T, E]
};

// Per thread.
struct GateScratch {
  ScratchArray<float> biased;        // [E]
  ScratchArray<float> group_scores;  // [E] at most
};

// Per thread.
struct SampleScratch {
  ScratchArray<float> logits;        // [V]  -inf where not allowed
  ScratchArray<double> weights;      // [V]  unnormalised probabilities
  ScratchArray<std::int32_t> order;  // [V]  candidate ids
};

// Per thread; kernels/cpu/attention_scratch.h.
struct AttentionScratch {
  std::int64_t context_max = 0;
  std::int64_t score_stride = 0;      // context_max, rounded up to whole vectors
  ScratchArray<double> queries;       // [heads of a share, 576]
  ScratchArray<float> keys;           // [keys at a time, 576]  de-quantized latents and RoPE keys
  ScratchArray<double> scores;        // [heads of a share, score_stride]
  ScratchArray<float> probabilities;  // [heads of a share, score_stride]
  ScratchArray<float> outputs;        // [heads of a share, 512]

  std::int64_t index_heads_max = 0;
  ScratchArray<float> index_keys;       // [128, 64]  a block of indexer keys, transposed
  ScratchArray<float> index_queries;    // [rows of a tile, index heads, 128]
  ScratchArray<std::int32_t> selected;  // [index_topk]  positions of a row

  std::int64_t masked_context_max = 0;  // 0: no room for the masked path
  std::int64_t key_width = 0;           // nope + 64, rounded up to whole vectors
  std::int64_t value_width = 0;
  ScratchArray<float> expanded_keys;    // [masked_context_max, key_width]  of one head
  ScratchArray<float> expanded_values;  // [masked_context_max, value_width]
  ScratchArray<float> weights;          // [nope + value, 512]  of one head
  ScratchArray<std::int32_t> admitted;  // [masked_context_max]  positions that a row's mask admits
};

struct CpuScratch {
  ScratchLimits limits;
  std::vector<ScratchArray<float>> rows;    // [threads]  one row of the widest op, see Row
  std::vector<MatmulScratch> matmul;        // [threads]
  std::vector<GateScratch> gate;            // [threads]
  std::vector<SampleScratch> sample;        // [threads]
  std::vector<AttentionScratch> attention;  // [threads]
  ExpertScratch experts;

  // One row of a thread; CHECK-fails where `width` exceeds what was reserved.
  float* Row(int thread, std::int64_t width) const;
};

// Bytes that MakeCpuScratch allocates.
std::int64_t CpuScratchBytes(const ScratchLimits& limits, int threads);

// Fails with std::bad_alloc, which the caller turns into an Error.
std::unique_ptr<CpuScratch> MakeCpuScratch(const ScratchLimits& limits, int threads);

}  // namespace dsa
