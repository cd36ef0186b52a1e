#include "server/cli/run.h"

#include <cstdio>
#include <exception>

int main(int argc, char** argv) {
  try {
    return dsa::RunProgram(argc, argv);
  } catch (const std::exception& error) {  // none of ours is thrown: a library's, or no memory
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
