// Devices on which one op is wrong, for the self-test to name.  Each is `inner` but for that op, on
// any backend.
#pragma once

#include "kernels/backend.h"

#include <memory>
#include <string>

namespace dsa::testing {

// The plain op `fault`, such as "Gate", writes values of the wrong sign and ids with a wrong bit.
// Fused ops have their default bodies.  "": none is wrong.
std::unique_ptr<Backend> WithDamagedOp(std::unique_ptr<Backend> inner, std::string fault);

// Every fused op has an override, and that of `fault` is wrong; AttendLatent's past top-k alone.
std::unique_ptr<Backend> WithDamagedOverride(std::unique_ptr<Backend> inner, std::string fault);

}  // namespace dsa::testing
