// The memory that a step works in: every buffer of model/limits.h, allocated once and carved out of
// one piece of device memory.  Contents live for one step.  Thread of the backend.
#pragma once

#include "common/check.h"
#include "common/status.h"
#include "common/view.h"
#include "kernels/backend.h"
#include "model/limits.h"

#include <array>
#include <cstdint>

namespace dsa {

class Activations final {
 public:
  // `type` is the model's activation type.  FAILED_PRECONDITION where the device has not the
  // memory.
  static Result<Activations> Create(Backend& backend, const WorkspacePlan& plan, DataType type);

  // Contiguous views of the start of a buffer; CHECK-fail where it is too small.
  template <typename T>
  Vector<T> AsVector(Buffer buffer, std::int64_t size) const {
    return {.data = static_cast<T*>(At(buffer, size * static_cast<std::int64_t>(sizeof(T)))),
            .size = size};
  }
  template <typename T>
  Matrix<T> AsMatrix(Buffer buffer, std::int64_t rows, std::int64_t cols) const {
    const std::int64_t bytes = rows * cols * static_cast<std::int64_t>(sizeof(T));
    return {
        .data = static_cast<T*>(At(buffer, bytes)), .rows = rows, .cols = cols, .row_stride = cols};
  }
  // Of the activation type.
  AnyMatrix AsActivation(Buffer buffer, std::int64_t rows, std::int64_t cols) const;

  // All of a buffer, for what is laid out elsewhere.
  std::uint8_t* Data(Buffer buffer) const { return static_cast<std::uint8_t*>(At(buffer, 0)); }

  DataType type() const { return type_; }
  // Rows of scores of `visible` keys, more than 0, that are held at a time.
  std::int64_t ScoreRows(std::int64_t visible) const;
  std::int64_t mask_words() const { return mask_words_; }

 private:
  Activations() = default;
  void* At(Buffer buffer, std::int64_t bytes) const;

  DeviceBuffer memory_;
  std::array<std::int64_t, kBuffers> offsets_{};
  std::array<std::int64_t, kBuffers> bytes_{};
  std::int64_t mask_words_ = 0;
  DataType type_ = DataType::kBf16;
};

}  // namespace dsa
