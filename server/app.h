// The composition root: makes every part of the server in order, and takes it down in order.
//
//   configuration -> address free -> device -> checkpoint -> tokenizer -> weights -> self-test of
//   the device -> caches -> masked_mha_until -> engine -> one real prefill and decode -> listening
//
// Nothing listens before all of that has happened.  Main thread.
#pragma once

#include "common/clock.h"
#include "common/status.h"
#include "kernels/backend.h"
#include "model/weight_loader.h"
#include "server/api/service_context.h"
#include "server/config.h"
#include "server/devices.h"
#include "server/engine/engine_loop.h"
#include "server/engine/model_executor.h"
#include "server/engine/rank_group.h"
#include "server/engine/text_decoder.h"
#include "server/grpc/grpc_server.h"
#include "server/http/http_server.h"
#include "server/model_files.h"
#include "server/model_source.h"
#include "server/sizing.h"
#include "server/watchdog.h"

#include <memory>
#include <vector>

namespace dsa {

// What a model runs on: a backend for each rank, and what they meet in; null where there is one.
struct RankDevices {
  ThreadGroup* group;
  std::vector<Backend*> backends;
};

class App final {
 public:
  // INVALID_ARGUMENT for configuration and files, FAILED_PRECONDITION for devices and memory; one
  // line.  Returns when health says SERVING.
  static Result<std::unique_ptr<App>> Start(const ServerConfig& config);
  // As Start, on backends that the caller made and that outlive the App, whatever config.device and
  // config.threads say; config.tensor_parallel_size says how many.
  static Result<std::unique_ptr<App>> StartOn(const RankDevices& devices,
                                              const ServerConfig& config);
  static Result<std::unique_ptr<App>> StartOn(Backend& backend, const ServerConfig& config);
  ~App();  // stops at once
  App(const App&) = delete;
  App& operator=(const App&) = delete;

  std::int64_t port() const { return server_->port(); }
  std::int64_t http_port() const { return http_ == nullptr ? 0 : http_->port(); }
  Engine& engine() { return *engine_; }

  // The line of the log that says where it listens, for what waits for it.
  void LogReady() const;

  // Health says NOT_SERVING, new requests are refused, running ones get shutdown_timeout_s, the
  // rest is aborted; then stops listening.
  void Drain();

 private:
  App(const ServerConfig& config, ModelSource source);
  // Without `devices` it makes its own.
  static Result<std::unique_ptr<App>> StartWith(RankDevices devices, const ServerConfig& config);

  Status LoadText();
  void LogText() const;
  Status LoadModel();
  Status MakeExecutor(const ServerSizes& sizes);
  void MeasureMasked(ServerSizes& sizes) const;
  Status SelfTest(const ServerSizes& sizes) const;
  Status WarmUp();
  Status Listen();
  Status ListenHttp();
  void BeginDrain();
  void StopServers(std::int64_t limit_us);
  void OnDeviceFailure(const std::string& reason);
  Status Watch();
  [[noreturn]] void OnLost() const;
  ServedModel DescribeModel() const;

  const ServerConfig config_;
  const SteadyClock clock_;
  const ModelSource source_;
  ModelText text_;

  // Destroyed in reverse: the server before the engine, the engine before the device.
  RankBackends own_devices_;            // none where StartOn brought some
  RankDevices devices_;                 // what is used
  std::vector<DeviceWeights> weights_;  // of each rank
  std::int64_t context_length_ = 0;
  std::int64_t masked_mha_until_ = 0;  // measured or configured
  std::int64_t connections_max_ = 0;
  std::int64_t grpc_bytes_max_ = 0;
  std::unique_ptr<StepExecutor> executor_;
  const RankGroup* ranks_ = nullptr;  // the executor, where there are several
  std::unique_ptr<TextDecoderFactory> decoders_;
  std::unique_ptr<EngineLoop> engine_;
  std::unique_ptr<ServiceContext> context_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<HttpServer> http_;  // null where it is not served
  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace dsa
