// Holds every operator of one layer to the golden trace, given the golden inputs: a backend that
// compares what an op wrote with the trace and then overwrites it with the traced values, so that
// the next op starts from them.  One sequence, computed from position 0 in one step.
#pragma once

#include "kernels/forwarding_backend.h"
#include "model/model_config.h"
#include "model/weights.h"
#include "tests/model/golden.h"

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace dsa::testing {

class OperatorCheck final : public ForwardingBackend {
 public:
  struct Golden {
    const std::map<std::string, GoldenArray>& arrays;
    int layer;
    const ModelConfig& config;
    const ModelWeights& weights;
  };
  OperatorCheck(Backend& inner, const Golden& golden) : ForwardingBackend(inner), golden_(golden) {}

  // One line for each operator that differs; also for one that was never called.
  std::vector<std::string> Violations() const;

  void RmsNorm(const RmsNormParams& params) override;
  void Linear(const LinearParams& params) override;
  void BlockScaledLinear(const BlockScaledLinearParams& params) override;
  void StoreLatent(const StoreLatentParams& params) override;
  void StoreIndexerKey(const StoreIndexerKeyParams& params) override;
  void PrepareIndexerQuery(const PrepareIndexerQueryParams& params) override;
  void IndexerLogits(const IndexerLogitsParams& params) override;
  void SelectTopK(const SelectTopKParams& params) override;
  void LatentAttention(const LatentAttentionParams& params) override;
  void ExpandValue(const ExpandValueParams& params) override;
  void Gate(const GateParams& params) override;
  void RoutedExperts(const RoutedExpertsParams& params) override;

 private:
  // How much of an output may differ from the trace.
  struct Bound {
    double relative;  // ||got - golden|| / ||golden||
    double unequal;   // share of values that differ by more than a float32 sum's order explains
  };
  const LayerWeights& layer() const {
    return golden_.weights.layers[static_cast<std::size_t>(golden_.layer)];
  }
  const GoldenArray& Array(const std::string& name) const { return golden_.arrays.at(name); }
  Bound RoundedBound(double unequal) const;
  void Compare(const std::string& name, const std::vector<float>& got,
               const std::vector<float>& expected, Bound bound);
  // Compares a matrix with rows [first, first + rows) of an array and overwrites it.
  void Replace(const std::string& name, const AnyMatrix& matrix, std::int64_t first, Bound bound);
  void AfterProjection(const void* weight, const AnyMatrix& y);
  void Violate(const std::string& text) { violations_.push_back(text); }

  Golden golden_;
  std::vector<std::string> violations_;
  std::set<std::string> seen_;
  bool inside_ = false;  // between the layer's attention norm and the end of its feed-forward
  std::int64_t first_row_ = 0;  // of the rows that the running attention call computes
};

}  // namespace dsa::testing
