// A client that sends bytes as a test wrote them, and reads answers.
#pragma once

#include "common/descriptor.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace dsa::testing {

struct Reply {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // without chunks
};

class RawClient final {
 public:
  explicit RawClient(std::int64_t port) : RawClient(port, 0) {}
  // With a receive buffer of so many bytes; 0: the system's.
  RawClient(std::int64_t port, int receive_bytes);

  // False where the server takes no more.
  bool Send(std::string_view bytes);
  // The next answer, whole; nullopt where the connection ends before it does, or after 20 s.
  std::optional<Reply> Read();
  // Reads the head and then the body's first bytes of a stream; what else came stays.
  std::optional<Reply> ReadBeginning();
  // What ReadBeginning began.
  std::optional<Reply> ReadRest(Reply head);
  // Whether the server has closed, waiting at most 20 s; what came before is thrown away.
  bool IsClosed();
  void Close() { socket_.Close(); }
  // The bytes and the end in one segment: whoever reads the first finds the second.
  void SendLast(std::string_view bytes);

 private:
  bool Receive();  // more bytes
  std::optional<std::string> Line();
  std::optional<Reply> Head();

  Descriptor socket_;
  std::string input_;
};

// "POST <path>" with a JSON body.
std::string Post(std::string_view path, std::string_view body, std::string_view headers = "");
std::string Get(std::string_view path);
// Of two prompt tokens.
std::string Completion(int max_tokens, bool stream);

// One request on a connection of its own.
Reply Exchange(std::int64_t port, std::string_view request);

// By which both threads of the server have read what came before.
void LetThreadsRead(std::int64_t port);

}  // namespace dsa::testing
