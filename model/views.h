// The parts of views that the model works with.
#pragma once

#include "common/view_parts.h"
