// Faults that a forward pass could have, each planted into the real one: through the model's
// configuration and weights where that is enough, through a backend that falsifies one op
// otherwise.
#pragma once

#include "kernels/backend.h"
#include "tests/model/golden.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace dsa::testing {

struct PlantedFault {
  std::string name = {};
  std::vector<std::string> cases = {};  // golden cases that must each catch it
  AttentionMode attention = AttentionMode::kSparse;
  // Changes configuration or weights; may be empty.
  std::function<void(TestModel& model)> change_model = nullptr;
  // Wraps the backend that runs the model; may be empty.
  std::function<std::unique_ptr<Backend>(Backend& inner)> wrap_backend = nullptr;
};

std::vector<PlantedFault> PlantedFaults();

}  // namespace dsa::testing
