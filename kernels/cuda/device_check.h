// What a machine must have for the CUDA backend.  Asks nobody, so that every answer can be tested
// without a device.
#pragma once

#include "common/status.h"

#include <string_view>

namespace dsa::cuda {

// Of a driver made for CUDA `version`, where 13000 is 13.0 and 0 no driver at all.
// FAILED_PRECONDITION with what was found and what is needed, in one line.
Status CheckDriverVersion(int version);

// Of the device's compute capability; as above.
Status CheckArchitecture(std::string_view device_name, int major, int minor);

// Of how many multiprocessors there are to run on (132 of an H100 SXM or an H200; fewer of an H100
// PCIe and of a MIG instance); as above.  Some kernels have that many blocks which wait for one
// another: with fewer places they would never end.
Status CheckMultiprocessors(std::string_view device_name, int multiprocessors);

}  // namespace dsa::cuda
