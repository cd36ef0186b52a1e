// Standard output of a command: nothing written to it is lost.  A reader that is slow is waited
// for, also where another process has made the pipe or terminal non-blocking; one that is gone, or
// a disk that is full, is an error that FlushOutput (report.h) reports.  Main thread.
#pragma once

namespace dsa {

// Makes `stdout` such a stream, before anything is written; standard streams that are closed are
// opened on nothing, so that no file or socket gets their numbers.
void TakeStandardStreams();

// The error number of the first write that failed; 0: none.
int OutputError();

}  // namespace dsa
