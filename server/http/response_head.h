// An answer's bytes around its body, as RFC 9112 writes them.
#pragma once

#include "server/http/transport.h"

#include <string>
#include <string_view>

namespace dsa {

// Up to the empty line.  `framing` is the header that says where the body ends, with its line end;
// empty where the connection's end does.
std::string ResponseHead(const HttpResponse& response, std::string_view framing, bool keep_alive);

// `bytes` as a chunk of a body; nothing where there are none, since an empty chunk is the last.
std::string AsChunk(std::string_view bytes);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace dsa
