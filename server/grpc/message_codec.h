// One call's messages: the request read, the answers written.  What methods that generate differ
// in.
#pragma once

#include "common/status.h"
#include "server/api/ask.h"
#include "server/api/reply.h"

#include <vector>

#include <grpcpp/support/byte_buffer.h>

namespace dsa {

// Read first, by whoever reads requests; then Encode, one part after the other.
class MessageCodec {
 public:
  MessageCodec() = default;
  MessageCodec(const MessageCodec&) = delete;
  MessageCodec& operator=(const MessageCodec&) = delete;
  virtual ~MessageCodec() = default;

  // `ask` gets the request's id also where the rest is refused.  Its delivery is the method's; a
  // protocol whose message says it changes it.
  virtual Status Read(const grpc::ByteBuffer& bytes, Ask& ask) = 0;

  // The messages that say `part`, in order: of a whole answer one, of a stream one at least, but
  // for its last part, of which there may be nothing to say.
  virtual std::vector<grpc::ByteBuffer> Encode(const ReplyPart& part, const ReplyHead& head) = 0;
};

}  // namespace dsa
