// The memory that an op writes, by the name of its output: read back, put back, and compared.  For
// checks of one way to run an op against another (kernels/override_check.h, kernels/op_trace.h).
#pragma once

#include "kernels/backend.h"
#include "kernels/fused/activation.h"
#include "kernels/kv_layout.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace dsa {

// `count` values one behind the other.
struct WrittenValues {
  enum class Kind : std::uint8_t { kF32, kBf16, kFp8E4m3, kBytes };

  const char* name;  // one for all pieces of an output
  void* data;
  std::int64_t count;
  Kind kind;  // kBytes must be equal, the others near
};

// Outputs of an op, and their bytes on the host, piece by piece.
using WrittenList = std::vector<WrittenValues>;
using WrittenBytes = std::vector<std::vector<std::byte>>;

// What is null adds nothing.
void AddMatrix(WrittenList& written, const char* name, const AnyMatrix& matrix);
void AddTensor(WrittenList& written, const char* name, const AnyTensor3& tensor);
void AddActivation(WrittenList& written, const char* name, const Activation& activation);
// Ids and bits.
void AddBytes(WrittenList& written, const char* name, void* data, std::int64_t bytes);
template <typename T>
void AddExact(WrittenList& written, const char* name, const Matrix<T>& matrix) {
  for (std::int64_t row = 0; matrix.data != nullptr && row < matrix.rows; ++row) {
    AddBytes(written, name, matrix.Row(row), matrix.cols * static_cast<std::int64_t>(sizeof(T)));
  }
}
template <typename T>
void AddExact(WrittenList& written, const char* name, const Vector<T>& vector) {
  AddBytes(written, name, vector.data, vector.size * static_cast<std::int64_t>(sizeof(T)));
}
// The records of `slots`.
void AddLatents(WrittenList& written, Backend& backend, const LatentCacheView& cache,
                const Vector<const std::int64_t>& slots);
void AddIndexerKeys(WrittenList& written, Backend& backend, const IndexerCacheView& cache,
                    const Vector<const std::int64_t>& slots);

// A vector in device memory; waits for it.
template <typename T>
std::vector<T> ReadVector(Backend& backend, const Vector<const T>& vector) {
  std::vector<T> host(static_cast<std::size_t>(vector.size));
  backend.CopyToHost(host.data(), vector.data, host.size() * sizeof(T));
  backend.Synchronize();
  return host;
}

WrittenBytes ReadBack(Backend& backend, const WrittenList& written);  // waits
void PutBack(Backend& backend, const WrittenList& written, const WrittenBytes& bytes);

// How far one output is from what it should be.
struct OutputDifference {
  double relative_error;  // ||actual - expected|| / ||expected||; infinite where bytes differ or a
                          // value is finite on one side only
  double unequal;         // the share of bytes that differ where they must be equal
};

// By output; both sides as `written` says.
std::map<std::string, OutputDifference> CompareOutputs(const WrittenList& written,
                                                       const WrittenBytes& actual,
                                                       const WrittenBytes& expected);

}  // namespace dsa
