// Recorded graphs and events of one stream.  For kernels/cuda/ only.
#pragma once

#include "kernels/backend.h"

#include <array>
#include <cstdint>
#include <functional>
#include <map>

#include <cuda_runtime_api.h>

namespace dsa::cuda {

class Graphs final {
 public:
  Graphs() = default;
  Graphs(const Graphs&) = delete;
  Graphs& operator=(const Graphs&) = delete;
  ~Graphs();

  void Open();  // makes the events, on the device that the thread is bound to

  bool is_recording() const { return is_recording_; }
  void Record(cudaStream_t stream, GraphId graph, const std::function<void()>& body);
  void Replay(cudaStream_t stream, GraphId graph) const;
  std::int64_t nodes(GraphId graph) const { return nodes_.at(graph); }
  void Mark(cudaStream_t stream, int event) const;
  void WaitFor(int event) const;

 private:
  std::map<GraphId, cudaGraphExec_t> graphs_;
  std::map<GraphId, std::int64_t> nodes_;
  std::array<cudaEvent_t, kEvents> events_{};
  bool is_recording_ = false;
};

}  // namespace dsa::cuda
