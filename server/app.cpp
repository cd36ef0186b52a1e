#include "server/app.h"

#include "common/log.h"
#include "common/machine.h"
#include "kernels/device_failure.h"
#include "server/connections.h"
#include "server/device_name.h"
#include "server/load_progress_bar.h"
#include "server/masked_border.h"
#include "server/net/listen_sockets.h"
#include "server/self_test.h"
#include "server/sizing.h"
#include "server/version.h"
#include "server/warm_up.h"
#include "server/watched_parts.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <system_error>
#include <utility>

#include <fmt/format.h>

namespace dsa {
namespace {

constexpr std::int64_t kUsPerSecond = 1'000'000;

// The files of a model that say how text becomes ids.  Routers take the chat format of V3.2, which
// has no template, from config.json, and would take it for V3.2-Exp, which has its own.
std::vector<std::string> TokenizerFiles(const ServerConfig& config,
                                        const std::optional<ChatFormat>& format) {
  std::vector<std::string> names = {"tokenizer.json", "tokenizer_config.json",
                                    "special_tokens_map.json", "chat_template.jinja",
                                    "generation_config.json"};
  if (format == ChatFormat::kV32) {
    names.emplace_back("config.json");
  }
  std::vector<std::string> files;
  for (const std::string& name : names) {
    std::filesystem::path path = std::filesystem::path(config.model) / name;
    if (name == "tokenizer.json" && !config.tokenizer.empty()) {
      path = config.tokenizer;
    }
    std::error_code ignored;
    if (std::filesystem::is_regular_file(path, ignored)) {
      files.push_back(path);
    }
  }
  return files;
}

void LogMemory(const ServerMemory& memory) {
  Log(LogLevel::kInfo, "memory",
      {{"needed_bytes", memory.needed()},
       {"weight_bytes", memory.weights},
       {"cache_bytes", memory.executor.cache},
       {"workspace_bytes", memory.executor.workspace},
       {"rope_bytes", memory.executor.rope},
       {"scratch_bytes", memory.executor.scratch},
       {"reserve_bytes", memory.reserve},
       {"host_bytes", memory.host},
       {"available_bytes", memory.available},
       {"bound", memory.bound}});
}

// gRPC's threads under load, which start when they are needed and may not be missing then.
std::int64_t GrpcThreadsAtMost() {
  constexpr std::int64_t kFixed = 8;
  constexpr std::int64_t kPerCpu = 4;
  return kFixed + kPerCpu * CountUsableCpus().affinity;
}

// All threads that serving takes: the backend's, ours and gRPC's.
std::int64_t ThreadsAtMost(const ServerConfig& config) {
  constexpr std::int64_t kOurs = 11;  // engine, pump, acceptors, watchdog, log, texts, HTTP
  return ChooseCpuThreads(config.threads).count + AllRanks(config) + kOurs + GrpcThreadsAtMost();
}

// An error of the listening sockets, which know one key.
Status OfHttp(Status status) {
  constexpr std::string_view kKey = "listen: ";
  if (!status.ok() && status.error().message.starts_with(kKey)) {
    return Error{status.error().code, "http_" + status.error().message};
  }
  return status;
}

// Whether both servers could listen, before anything is loaded.
Status ProbeAddresses(const ServerConfig& config) {
  DSA_ASSIGN_OR_RETURN(const ListenAddress listen, ParseListen(config.listen));
  if (config.http_listen.empty()) {
    return ProbeListen(listen.host, listen.port);
  }
  DSA_ASSIGN_OR_RETURN(const ListenAddress http, ParseListen(config.http_listen, "http_listen"));
  const bool any_port = http.port == 0 && !http.host.starts_with(kUnixPrefix);
  if (http.host == listen.host && http.port == listen.port && !any_port) {
    return InvalidArgument(
        fmt::format("http_listen: {} is listen's, too", AddressText(http.host, http.port)));
  }
  DSA_RETURN_IF_ERROR(ProbeListen(listen.host, listen.port));
  return OfHttp(ProbeListen(http.host, http.port));
}

}  // namespace

Result<std::unique_ptr<App>> App::Start(const ServerConfig& config) {
  return StartWith({.group = nullptr, .backends = {}}, config);
}

Result<std::unique_ptr<App>> App::StartOn(Backend& backend, const ServerConfig& config) {
  return StartWith({.group = nullptr, .backends = {&backend}}, config);
}

Result<std::unique_ptr<App>> App::StartOn(const RankDevices& devices, const ServerConfig& config) {
  return StartWith(devices, config);
}

Result<std::unique_ptr<App>> App::StartWith(RankDevices devices, const ServerConfig& config) {
  DSA_RETURN_IF_ERROR(Validate(config));
  DSA_RETURN_IF_ERROR(CheckStackLimit());
  DSA_RETURN_IF_ERROR(ProbeThreads(ThreadsAtMost(config)));
  const std::int64_t descriptors = RaiseDescriptorLimit();
  const std::int64_t servers = config.http_listen.empty() ? 1 : 2;
  DSA_ASSIGN_OR_RETURN(const std::int64_t connections_max,
                       ChooseConnectionsMax(config.max_connections, servers, descriptors));
  DSA_RETURN_IF_ERROR(ProbeAddresses(config));
  RankBackends own_devices;
  if (devices.backends.empty()) {
    DSA_ASSIGN_OR_RETURN(own_devices, MakeRankBackends(config.device, config.threads,
                                                       LayoutOf(config), config.collectives));
    devices.group = own_devices.group.get();
    for (const std::unique_ptr<Backend>& backend : own_devices.backends) {
      devices.backends.push_back(backend.get());
    }
  }
  DSA_ASSIGN_OR_RETURN(
      ModelSource source,
      ModelSource::Open(config.model, ParseLoadMode(config.load),
                        ParseGenerationFile(config.generation_config), config.slice));
  auto app = std::unique_ptr<App>(new App(config, std::move(source)));
  app->own_devices_ = std::move(own_devices);
  app->devices_ = std::move(devices);
  app->connections_max_ = connections_max;
  DSA_RETURN_IF_ERROR(app->LoadText());
  DSA_RETURN_IF_ERROR(app->LoadModel());
  DSA_RETURN_IF_ERROR(app->WarmUp());
  DSA_RETURN_IF_ERROR(app->Listen());
  DSA_RETURN_IF_ERROR(app->Watch());
  SetDeviceFailureHandler(
      [&serving = *app](const std::string& reason) { serving.OnDeviceFailure(reason); });
  return app;
}

App::App(const ServerConfig& config, ModelSource source)
    : config_(config), source_(std::move(source)) {}

App::~App() {
  SetDeviceFailureHandler({});
  if (engine_ != nullptr) {
    engine_->Stop();  // ends every call, so that the server has none to wait for
  }
}

Status App::LoadText() {
  DSA_ASSIGN_OR_RETURN(text_, LoadModelText({.model_folder = config_.model,
                                             .tokenizer_path = config_.tokenizer,
                                             .chat_format = config_.chat_format},
                                            source_.config()));
  return {};
}

// Said with the model and not before: a start that fails has one line.
void App::LogText() const {
  if (text_.tokenizer == nullptr) {
    Log(LogLevel::kWarning, "no tokenizer: only completions of token ids are served");
  } else if (text_.chat.format) {
    Log(LogLevel::kInfo, "chat format",
        {{"format", ToString(*text_.chat.format)}, {"reason", text_.chat.reason}});
  } else {
    Log(config_.chat_format == "none" ? LogLevel::kInfo : LogLevel::kWarning,
        "no chat format: chat is refused", {{"reason", text_.chat.reason}});
  }
}

Status App::LoadModel() {
  const ModelConfig& model = source_.config();
  const std::int32_t vocabulary_limit = text_.tokenizer == nullptr
                                            ? static_cast<std::int32_t>(model.vocabulary)
                                            : text_.tokenizer->size();
  DSA_ASSIGN_OR_RETURN(
      ServerSizes sizes,
      SizeServer(
          config_,
          {.config = model,
           .weight_bytes = [this](const RankPlace& place) { return source_.weight_bytes(place); },
           .vocabulary_limit = vocabulary_limit},
          devices_.backends));
  context_length_ = sizes.engine.scheduler.context_tokens_max;
  grpc_bytes_max_ = GrpcBytesMax(FindAvailableMemory().bytes);
  if (!own_devices_.backends.empty() && config_.device == "cpu") {
    const CpuThreads threads = ChooseCpuThreads(config_.threads);
    Log(LogLevel::kInfo, "CPU threads", {{"threads", threads.count}, {"reason", threads.reason}});
  }
  if (!own_devices_.collectives.empty()) {
    Log(LogLevel::kInfo, "collectives", {{"through", own_devices_.collectives}});
  }
  LogMemory(sizes.memory);
  LoadProgressBar progress;
  DSA_ASSIGN_OR_RETURN(weights_, source_.LoadRanks(LayoutOf(config_), devices_.backends, progress));
  DSA_RETURN_IF_ERROR(SelfTest(sizes));
  DSA_RETURN_IF_ERROR(MakeExecutor(sizes));
  if (MeasuresMaskedBorder(config_)) {
    MeasureMasked(sizes);
  }
  masked_mha_until_ = sizes.engine.scheduler.masked_mha_until;
  if (text_.tokenizer != nullptr) {
    decoders_ = MakeTextDecoderFactory(*text_.tokenizer);
  }
  const EngineLoop::Dependencies dependencies = {
      .executor = *executor_, .clock = clock_, .decoders = decoders_.get()};
  engine_ = std::make_unique<EngineLoop>(sizes.engine, dependencies);
  engine_->Start();
  Log(LogLevel::kInfo, "model loaded",
      {{"model", config_.model},
       {"type", ToString(model.architecture)},
       {"layers", model.layers},
       {"device", devices_.backends.front()->Name()},
       {"ranks", AllRanks(config_)},
       {"data_ranks", config_.data_parallel_size},
       {"context_tokens", context_length_},
       {"cache_blocks", std::int64_t{sizes.engine.blocks}},
       {"cache_bytes", sizes.memory.executor.cache}});
  LogText();
  return {};
}

Status App::MakeExecutor(const ServerSizes& sizes) {
  const ModelConfig& model = source_.config();
  if (devices_.backends.size() == 1) {
    DSA_ASSIGN_OR_RETURN(
        executor_, ModelExecutor::Create(*devices_.backends.front(),
                                         {.config = model, .weights = weights_.front().weights},
                                         sizes.executor));
    return {};
  }
  std::vector<RankGroup::Rank> ranks;
  for (std::size_t rank = 0; rank < weights_.size(); ++rank) {
    ranks.push_back({.backend = *devices_.backends[rank], .weights = weights_[rank].weights});
  }
  DSA_ASSIGN_OR_RETURN(std::unique_ptr<RankGroup> group,
                       RankGroup::Create(*devices_.group, ranks, model, sizes.executor));
  ranks_ = group.get();
  executor_ = std::move(group);
  return {};
}

void App::MeasureMasked(ServerSizes& sizes) const {
  const SchedulerConfig& scheduler = sizes.engine.scheduler;
  const MaskedBorder border =
      MeasureMaskedBorder(*executor_, clock_,
                          {.positions_max = sizes.executor.limits.masked_until,
                           .rows_max = sizes.executor.limits.tokens_max,
                           .context_max = sizes.executor.limits.context_max,
                           .vocabulary = source_.config().vocabulary,
                           .attention = scheduler.attention,
                           .index_topk = scheduler.index_topk,
                           .data_ranks = config_.data_parallel_size});
  SetMaskedUntil(config_, border.until, sizes);
  const auto text = [](const PrefillRates& rates) {
    return fmt::format("masked {:.0f}, {:.0f} without, at {}", rates.masked_per_s,
                       rates.absorbed_per_s, rates.position);
  };
  Log(LogLevel::kInfo, "masked_mha_until measured",
      {{"masked_mha_until", border.until},
       {"tokens_per_s_near", text(border.near)},
       {"tokens_per_s_far", text(border.far)}});
}

// Of a device that is not the CPU, whose ops are what others are held to.  While memory is free.
Status App::SelfTest(const ServerSizes& sizes) const {
  if (own_devices_.backends.empty() || config_.device == "cpu") {
    return {};
  }
  SelfTestOptions options = {.make_device = [this] { return MakeBackend(config_.device, 0); },
                             .kv_format = sizes.executor.kv_format,
                             .masked_mha_until = sizes.executor.limits.masked_until,
                             .step_tokens_max = config_.max_num_batched_tokens,
                             .threads = static_cast<int>(ChooseCpuThreads(config_.threads).count)};
  const ModelConfig& model = source_.config();
  if (devices_.backends.size() == 1) {
    return RunSelfTest({.config = model, .weights = weights_.front().weights}, options);
  }
  for (const int index : CudaIndices(*ParseDevice(config_.device), AllRanks(config_))) {
    options.make_device = [index] { return MakeBackend(fmt::format("cuda:{}", index), 0); };
    const Status status = RunRankSelfTest(model, options);
    if (!status.ok()) {
      return Error{status.error().code,
                   fmt::format("CUDA device {}: {}", index, status.error().message)};
    }
  }
  Log(LogLevel::kInfo, "testing collectives", {{"ranks", AllRanks(config_)}});
  return RunCollectiveTest(devices_.backends, model, LayoutOf(config_),
                           config_.max_num_batched_tokens);
}

Status App::WarmUp() {
  const ModelConfig& model = source_.config();
  const std::int64_t past_selection = model.index_topk + 1;
  return RunWarmUp(*engine_, clock_,
                   {.prompt_tokens = std::clamp(past_selection, std::int64_t{1},
                                                context_length_ - 2 > 0 ? context_length_ - 2 : 1),
                    .vocabulary = model.vocabulary});
}

ServedModel App::DescribeModel() const {
  const ModelConfig& model = source_.config();
  ServedModel served;
  served.id =
      config_.served_model_name.empty() ? ModelNameOf(config_.model) : config_.served_model_name;
  served.model_type = ToString(model.architecture);
  served.context_length = context_length_;
  served.vocabulary = static_cast<std::int32_t>(model.vocabulary);
  served.layers = model.layers;
  served.index_topk = model.index_topk;
  served.masked_mha_until = masked_mha_until_;
  for (const std::int32_t id : model.end_ids) {
    served.end_ids.push_back(TokenId{id});
  }
  served.chat_format = text_.chat.format;
  served.chat_format_reason = text_.chat.reason;
  served.bos = text_.bos;
  served.add_bos = text_.add_bos;
  if (text_.tokenizer != nullptr) {
    served.tokenizer_files = TokenizerFiles(config_, text_.chat.format);
  }
  served.max_tokens_default = config_.max_tokens_default;
  served.temperature = model.sampling.temperature;
  served.top_p = model.sampling.top_p;
  served.top_k = model.sampling.top_k;
  served.min_p = model.sampling.min_p;
  served.repetition_penalty = model.sampling.repetition_penalty;
  return served;
}

Status App::Listen() {
  context_.reset(new ServiceContext{.engine = *engine_,
                                    .clock = clock_,
                                    .tokenizer = text_.tokenizer.get(),
                                    .model = DescribeModel(),
                                    .server = {.version = std::string(kVersion),
                                               .device = config_.device,
                                               .configuration_json = ToJson(config_),
                                               .price_per_hour_cents = config_.price_per_hour_cents,
                                               .ready_us = clock_.NowUs()},
                                    .slow_client = {.held_bytes_max = grpc_bytes_max_},
                                    .draining = false,
                                    .answers = {},
                                    .request_ids = {},
                                    .open_calls = {},
                                    .workers = {}});
  DSA_ASSIGN_OR_RETURN(const ListenAddress address, ParseListen(config_.listen));
  GrpcServerConfig listening;
  listening.host = address.host;
  listening.port = address.port;
  listening.connections_max = connections_max_;
  listening.memory_bytes_max = grpc_bytes_max_;
  listening.message_bytes_max = config_.max_message_bytes;
  listening.guard.streams_max = config_.max_concurrent_streams;
  listening.guard.cancels_per_s = config_.max_cancels_per_s;
  constexpr std::int64_t kOtherStreams = 512;  // watches of health, tokens, and so on
  listening.streams_max = config_.data_parallel_size * SequencesMax(config_) +
                          config_.max_queued_requests + kOtherStreams;
  // Again, now that the model is there: it takes address space too, and gRPC aborts without
  // threads.
  DSA_RETURN_IF_ERROR(ProbeThreads(GrpcThreadsAtMost()));
  DSA_ASSIGN_OR_RETURN(server_, GrpcServer::Start(listening, *context_));
  return config_.http_listen.empty() ? Status() : ListenHttp();
}

Status App::ListenHttp() {
  DSA_ASSIGN_OR_RETURN(const ListenAddress address,
                       ParseListen(config_.http_listen, "http_listen"));
  HttpServerConfig listening;
  listening.host = address.host;
  listening.port = address.port;
  listening.connections_max = connections_max_;
  listening.message_bytes_max = config_.max_message_bytes;
  listening.memory_bytes_max = grpc_bytes_max_;
  listening.strict = config_.http_strict;
  Result<std::unique_ptr<HttpServer>> http = HttpServer::Start(listening, *context_);
  if (!http.ok()) {
    return OfHttp(http.error());
  }
  http_ = std::move(http).value();
  return {};
}

void App::LogReady() const {
  if (http_ != nullptr) {
    Log(LogLevel::kInfo, "HTTP",
        {{"host", ParseListen(config_.http_listen).value().host}, {"http_port", http_->port()}});
  }
  Log(LogLevel::kInfo, "ready",
      {{"host", ParseListen(config_.listen).value().host},
       {"port", server_->port()},
       {"model", context_->model.id},
       {"max_connections", connections_max_},
       {"configuration", Differences(config_)}});
}

// On the engine thread, which meets the failure within a step and never leaves it.
void App::OnDeviceFailure(const std::string& reason) {
  constexpr std::int64_t kLastWritesUs = 2 * kUsPerSecond;
  Log(LogLevel::kError, "the device failed: every request ends, and so does the process",
      {{"reason", reason}});
  BeginDrain();
  engine_->FailAll(ErrorCode::kUnavailable, "the device failed");
  StopServers(kLastWritesUs);
  FlushLog();
}

Status App::Watch() {
  Watchdog::Options options;
  options.limit = std::chrono::seconds(config_.stall_timeout_s);
  options.on_lost = [this] { OnLost(); };
  DSA_ASSIGN_OR_RETURN(
      watchdog_, WatchServer({.engine = *engine_, .grpc = *server_, .http = http_.get()}, options));
  return {};
}

// By the watchdog's thread.
void App::OnLost() const {
  if (ranks_ != nullptr) {
    Log(LogLevel::kError, "ranks that the others wait for",
        {{"ranks", fmt::format("{}", fmt::join(ranks_->Late(), ", "))}});
  }
  EndStalledProcess();
}

void App::BeginDrain() {
  server_->BeginDrain();
  if (http_ != nullptr) {
    http_->BeginDrain();
  }
}

void App::StopServers(std::int64_t limit_us) {
  server_->Stop(limit_us);
  if (http_ != nullptr) {
    http_->Stop(limit_us);
  }
}

void App::Drain() {
  // What the last answers need to leave the machine after the engine has ended them.
  constexpr std::int64_t kLastWritesUs = 2 * kUsPerSecond;
  BeginDrain();
  engine_->Drain(config_.shutdown_timeout_s * kUsPerSecond);
  StopServers(kLastWritesUs);
  engine_->Stop();
}

}  // namespace dsa
