#include "server/http/openai/routes.h"

#include "common/json.h"
#include "common/log.h"
#include "server/api/errors.h"
#include "server/api/prompt.h"
#include "server/api/uptime.h"
#include "server/http/openai/completion_call.h"
#include "server/http/openai/errors.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <ctime>
#include <new>
#include <utility>

#include <fmt/core.h>

namespace dsa {
namespace {

constexpr std::string_view kModelsPath = "/v1/models";
constexpr std::size_t kShownBytesMax = 128;

HttpResponse JsonResponse(const Json& json) {
  return {.body = json.dump(-1, ' ', false, Json::error_handler_t::replace)};
}

HttpResponse Answer(const Result<Json>& answer) {
  return answer.ok() ? JsonResponse(answer.value()) : ErrorResponse(answer.error());
}

// Without the query, and without the host that a proxy's client names.
std::string_view PathOf(const HttpRequest& request) {
  constexpr std::string_view kScheme = "http://";
  std::string_view target = request.target;
  if (target.starts_with(kScheme)) {
    target.remove_prefix(std::min(target.find('/', kScheme.size()), target.size()));
  }
  return target.substr(0, target.find('?'));
}

Json ModelCard(const ServiceContext& context) {
  constexpr std::int64_t kUsPerSecond = 1'000'000;
  return {{"id", context.model.id},
          {"object", "model"},
          {"created", std::time(nullptr) - UptimeUs(context) / kUsPerSecond},
          {"owned_by", "dsa"},
          {"max_model_len", context.model.context_length}};
}

// Of a path, where clients write a model's slash as %2F; what is no such number stands as it is.
std::string PercentDecoded(std::string_view text) {
  constexpr std::size_t kEscapeBytes = 3;
  constexpr int kHexadecimal = 16;
  std::string decoded;
  while (!text.empty()) {
    unsigned value = 0;
    const char* const digits = text.data() + 1;
    if (text.front() == '%' && text.size() >= kEscapeBytes &&
        std::from_chars(digits, digits + 2, value, kHexadecimal).ptr == digits + 2) {
      decoded += static_cast<char>(value);
      text.remove_prefix(kEscapeBytes);
    } else {
      decoded += text.front();
      text.remove_prefix(1);
    }
  }
  return decoded;
}

Result<Json> Models(std::string_view path, const ServiceContext& context) {
  const std::string id = PercentDecoded(path.substr(std::min(path.size(), kModelsPath.size() + 1)));
  if (id.empty()) {
    return Json{{"object", "list"}, {"data", Json::array({ModelCard(context)})}};
  }
  DSA_RETURN_IF_ERROR(CheckModel(id, "model", context));
  return ModelCard(context);
}

Result<std::string> TakeModel(RequestFields& fields, const ServiceContext& context) {
  DSA_ASSIGN_OR_RETURN(const std::optional<std::string> model, fields.TakeText("model"));
  DSA_RETURN_IF_ERROR(CheckModel(model.value_or(""), "model", context));
  return model.value_or("");
}

Result<std::vector<TokenId>> TokenizeText(RequestFields& fields, const ServiceContext& context) {
  DSA_ASSIGN_OR_RETURN(const std::optional<std::string> text, fields.TakeText("prompt"));
  DSA_ASSIGN_OR_RETURN(const std::optional<bool> add_special,
                       fields.TakeBool("add_special_tokens"));
  if (!text) {
    return InvalidArgument("prompt: missing: a string, or messages");
  }
  std::vector<TokenId> ids;
  if (add_special.value_or(context.model.add_bos) && context.model.bos) {
    ids.push_back(*context.model.bos);
  }
  const TextRange all{.begin = 0, .end = text->size()};
  DSA_ASSIGN_OR_RETURN(const std::vector<TokenId> encoded,
                       EncodeWithin(*text, {&all, 1}, "prompt", context));
  ids.insert(ids.end(), encoded.begin(), encoded.end());
  return ids;
}

Result<std::vector<TokenId>> TokenizeChat(RequestFields& fields, const ServiceContext& context) {
  DSA_ASSIGN_OR_RETURN(const Chat chat, TakeChat(fields));
  const ChatFieldNames names = FieldNamesOf(Endpoint::kChat).chat;
  DSA_ASSIGN_OR_RETURN(const RenderedPrompt rendered, RenderPrompt(chat, names, context));
  return EncodeWithin(rendered.text, rendered.template_ranges, "messages", context);
}

Result<Json> Tokenize(const std::string& body, UnknownKeys unknown, const ServiceContext& context) {
  DSA_ASSIGN_OR_RETURN(RequestFields fields, RequestFields::Parse(body));
  DSA_RETURN_IF_ERROR(TakeModel(fields, context));
  const bool chat = fields.Take("messages") != nullptr;
  DSA_ASSIGN_OR_RETURN(const std::vector<TokenId> ids,
                       chat ? TokenizeChat(fields, context) : TokenizeText(fields, context));
  DSA_ASSIGN_OR_RETURN(const std::optional<bool> return_texts,
                       fields.TakeBool("return_token_strs"));
  DSA_RETURN_IF_ERROR(fields.CheckRest(unknown));
  Json tokens = Json::array();
  for (const TokenId id : ids) {
    tokens.push_back(Value(id));
  }
  Json answer = {{"count", ids.size()},
                 {"max_model_len", context.model.context_length},
                 {"tokens", std::move(tokens)}};
  if (return_texts.value_or(false)) {
    Json texts = Json::array();
    for (const TokenId id : ids) {
      texts.push_back(context.tokenizer->Bytes(id));
    }
    answer["token_strs"] = std::move(texts);
  }
  return answer;
}

Result<Json> Detokenize(const std::string& body, UnknownKeys unknown,
                        const ServiceContext& context) {
  DSA_ASSIGN_OR_RETURN(RequestFields fields, RequestFields::Parse(body));
  DSA_RETURN_IF_ERROR(TakeModel(fields, context));
  if (fields.Take("tokens") == nullptr) {
    return InvalidArgument("tokens: missing: an array of token ids");
  }
  DSA_ASSIGN_OR_RETURN(const std::vector<std::int64_t> ids, fields.TakeInts("tokens"));
  DSA_RETURN_IF_ERROR(fields.CheckRest(unknown));
  DSA_ASSIGN_OR_RETURN(std::string text, DecodeWithin(ids, "tokens", context));
  return Json{{"prompt", std::move(text)}};
}

struct Route {
  std::string_view path;
  std::string_view method;
};

// Nullptr for a path that there is none of.
const Route* FindRoute(std::string_view path) {
  static constexpr Route kRoutes[] = {
      {"/health", "GET"},      {"/ready", "GET"},           {"/version", "GET"},
      {kModelsPath, "GET"},    {"/tokenize", "POST"},       {"/v1/chat/completions", "POST"},
      {"/detokenize", "POST"}, {"/v1/completions", "POST"},
  };
  const std::string_view known =
      path.starts_with(kModelsPath) && path.substr(kModelsPath.size()).starts_with('/')
          ? kModelsPath
          : path;
  for (const Route& route : kRoutes) {
    if (route.path == known) {
      return &route;
    }
  }
  return nullptr;
}

// What a page in somebody's browser cannot send to this machine without being asked.
bool IsJson(std::string_view content_type) {
  constexpr std::string_view kJson = "application/json";
  const std::string_view type = content_type.substr(0, content_type.find_first_of("; "));
  return std::equal(type.begin(), type.end(), kJson.begin(), kJson.end(),
                    [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a - 'A' + 'a' : a) == b; });
}

constexpr int kNotFound = 404;
constexpr int kMethodNotAllowed = 405;
constexpr int kUnsupportedMediaType = 415;

// Nullopt where the request is one that a route answers.
std::optional<HttpFault> Check(const HttpRequest& request, const Route* route) {
  if (route == nullptr) {
    return HttpFault{kNotFound,
                     fmt::format("no such path: {}", Escape(PathOf(request), kShownBytesMax))};
  }
  const bool head = request.method == "HEAD" && route->method == "GET";
  if (request.method != route->method && !head) {
    return HttpFault{kMethodNotAllowed, fmt::format("{}: only {}", route->path, route->method)};
  }
  if (route->method == "POST" && !IsJson(request.content_type)) {
    return HttpFault{kUnsupportedMediaType,
                     fmt::format("Content-Type: \"{}\" is not application/json",
                                 Escape(request.content_type, kShownBytesMax))};
  }
  if (!request.content_encoding.empty() && request.content_encoding != "identity") {
    return HttpFault{kUnsupportedMediaType,
                     fmt::format("Content-Encoding: \"{}\" is not identity",
                                 Escape(request.content_encoding, kShownBytesMax))};
  }
  return std::nullopt;
}

// The line of a request that is no generation call, as gRPC's short calls have.
void LogRequest(const HttpRequest& request, int status, std::string_view error, double total_ms) {
  Log(LogLevel::kInfo, "request",
      {{"id", Escape(request.request_id, kLoggedBytesMax)},
       {"method", Escape(PathOf(request), kLoggedBytesMax)},
       {"status", status},
       {"error", Escape(error, kLoggedBytesMax)},
       {"total_ms", total_ms}});
}

// An answer that is given at once.
void AnswerNow(const HttpRequest& request, HttpResponse response, std::string_view error,
               HttpExchange& exchange) {
  LogRequest(request, response.status, error, 0.0);
  exchange.Respond(std::move(response));
}

HttpResponse Refusal(const HttpFault& fault, const Route* route) {
  HttpResponse response{.status = fault.status, .body = FaultErrorBody(fault)};
  if (fault.status == kMethodNotAllowed) {
    response.headers.push_back({"Allow", route->method == "GET" ? "GET, HEAD" : "POST"});
  }
  return response;
}

// A call that is answered by the text workers: one whose client has left before its turn is not
// worked on.
class TextCall final : public HttpCall {
 public:
  TextCall(HttpRequest&& request, std::shared_ptr<HttpExchange> exchange, const Clock& clock)
      : request_(std::move(request)),
        exchange_(std::move(exchange)),
        clock_(clock),
        start_us_(clock.NowUs()) {}

  const HttpRequest& request() const { return request_; }
  bool gone() const { return gone_.load(std::memory_order_relaxed); }

  // Once.  Before OnDone, which the answer's way to the client brings about.
  void Respond(const Result<Json>& answer) {
    HttpResponse response = Answer(answer);
    status_ = response.status;
    error_ = answer.ok() ? "" : answer.error().message;
    exchange_->Respond(std::move(response));
  }

  void OnWritten(bool /*ok*/) override {}
  void OnGone() override { gone_.store(true, std::memory_order_relaxed); }
  void OnDone() override {
    constexpr double kUsPerMs = 1000.0;
    LogRequest(request_, status_, error_,
               static_cast<double>(clock_.NowUs() - start_us_) / kUsPerMs);
  }

 private:
  const HttpRequest request_;
  const std::shared_ptr<HttpExchange> exchange_;
  const Clock& clock_;
  const MonotonicUs start_us_;
  int status_ = 0;
  std::string error_;
  std::atomic<bool> gone_{false};  // a hint that orders nothing
};

}  // namespace

HttpResponse Routes::Ready() const {
  if (context_.draining.load(std::memory_order_relaxed)) {
    return ErrorResponse(DrainingError());
  }
  if (stalled_.load(std::memory_order_relaxed)) {
    return ErrorResponse({ErrorCode::kUnavailable, "stalled: nothing advances"});
  }
  return JsonResponse({{"status", "ready"}});
}

std::shared_ptr<HttpCall> Routes::Handle(HttpRequest&& request,
                                         std::shared_ptr<HttpExchange> exchange) {
  const std::string_view path = PathOf(request);
  const Route* const route = FindRoute(path);
  if (const std::optional<HttpFault> fault = Check(request, route)) {
    AnswerNow(request, Refusal(*fault, route), fault->message, *exchange);
  } else if (path == "/v1/chat/completions") {
    return CompletionCall::Start(Endpoint::kChat, unknown_, context_, std::move(request),
                                 std::move(exchange));
  } else if (path == "/v1/completions") {
    return CompletionCall::Start(Endpoint::kCompletion, unknown_, context_, std::move(request),
                                 std::move(exchange));
  } else if (path == "/tokenize" || path == "/detokenize") {
    return AnswerText(std::move(request), std::move(exchange));
  } else if (path == "/ready") {
    exchange->Respond(Ready());
  } else if (path == "/health") {
    exchange->Respond(JsonResponse({{"status", "alive"}}));
  } else if (path == "/version") {
    exchange->Respond(JsonResponse({{"version", context_.server.version}}));
  } else {
    const Result<Json> models = Models(path, context_);
    AnswerNow(request, Answer(models), models.ok() ? "" : models.error().message, *exchange);
  }
  return nullptr;
}

// Here or, where there is much of it, by the text workers.
std::shared_ptr<HttpCall> Routes::AnswerText(HttpRequest&& request,
                                             std::shared_ptr<HttpExchange> exchange) {
  const bool tokenizes = PathOf(request) == "/tokenize";
  const std::size_t bytes = request.body.size();
  const auto call =
      std::make_shared<TextCall>(std::move(request), std::move(exchange), context_.clock);
  const Status taken = context_.workers.Do(bytes, [this, tokenizes, call] {
    const std::string& body = call->request().body;
    if (call->gone()) {
      call->Respond(CancelledError());
      return;
    }
    try {
      call->Respond(tokenizes ? Tokenize(body, unknown_, context_)
                              : Detokenize(body, unknown_, context_));
    } catch (const std::bad_alloc&) {
      call->Respond(NoMemoryError());
    }
  });
  if (!taken.ok()) {
    call->Respond(taken.error());
  }
  return call;
}

}  // namespace dsa
