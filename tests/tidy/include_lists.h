// Whether each source names the headers of what it uses.  The builds of `make test` join sources,
// where one profits from the includes of another; this reads the texts as if each were compiled
// alone.
#pragma once

#include "tests/tidy/rules.h"

#include <vector>

namespace dsa::tidy {

// One complaint for each file and each missing header: a name of the standard library, or a type,
// function or constant that one of `sources` alone defines at namespace level, whose header neither
// the file nor one of our headers that it includes, however far, includes.  A name of the standard
// library that is not in the table of include_lists.cpp is a complaint too.  What a file or its
// headers declare by themselves is theirs.  CUDA's sources are only looked through: nvcc compiles
// each alone.
std::vector<Complaint> CheckIncludeLists(const std::vector<Source>& sources);

}  // namespace dsa::tidy
