// The program `dsa`: parses the command line and runs one command, each a source file here.
#pragma once

namespace dsa {

// Returns the exit code.  Main thread.
int RunProgram(int argc, char** argv);

}  // namespace dsa
