// One protocol's end of a call: parts of an answer become messages there.
#pragma once

#include "common/status.h"
#include "server/api/reply.h"

namespace dsa {

// None of these waits.  GenerationCall calls them one at a time and under its lock, so none may
// call back.
class ReplyWriter {
 public:
  ReplyWriter() = default;
  ReplyWriter(const ReplyWriter&) = delete;
  ReplyWriter& operator=(const ReplyWriter&) = delete;
  virtual ~ReplyWriter() = default;

  // One at a time: the next one after GenerationCall::OnWriteDone.  Never with Delivery::kWhole.
  virtual void Write(const ReplyPart& part, const ReplyHead& head) = 0;

  // Nothing could be said for a while: tells the client of a stream that it is not forgotten, where
  // that takes bytes of the protocol's own; as a Write, and false where it does not.
  virtual bool StayAlive(const ReplyHead& head) = 0;

  // The end, once, with nothing being written.  `last` is the whole answer or the rest of a stream;
  // null where only the status is sent, which is then an error.
  virtual void Finish(const ReplyPart* last, const ReplyHead& head, const Status& status) = 0;

  // The client does not read: the write or the end that is in flight shall fail soon.
  virtual void Drop() = 0;
};

}  // namespace dsa
