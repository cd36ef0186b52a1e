#include "model/model_slice.h"
#include "server/config.h"
#include "server/device_name.h"

namespace dsa {
namespace {

constexpr std::int64_t kTokensMax = std::int64_t{1} << 24;
constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr std::int64_t kBytesMax = std::int64_t{1} << 50;

using C = ServerConfig;

bool IsDevice(std::string_view text) {
  return ParseDevice(text).has_value();
}

bool IsSlice(std::string_view text) {
  return ParseModelSlice(text).ok();
}

std::vector<ConfigKey> ModelKeys() {
  return {
      {"model", "Model", "Directory of the checkpoint, in the Hugging Face layout. Required.",
       TextValue{&C::model}},
      {"served_model_name", "Model",
       "The id that requests name. Empty: the name of the model's directory.",
       TextValue{&C::served_model_name}},
      {"tokenizer", "Model",
       "Path of tokenizer.json. Empty: the one beside the model; without one only token ids work.",
       TextValue{&C::tokenizer}},
      {"chat_format", "Model",
       "How conversations become prompts. auto: by the marks of the chat template in the "
       "checkpoint, which is not run, or by model type where there is none; none: chat is refused.",
       ChoiceValue{&C::chat_format, {"auto", "v3.2", "v3.1", "none"}}},
      {"generation_config", "Model",
       "auto: sampling defaults and end ids of the checkpoint's generation_config.json, which is "
       "refused where it asks for what is not supported; none: as if it were not there.",
       ChoiceValue{&C::generation_config, {"auto", "none"}}},
      {"load", "Model",
       "checkpoint: the weights of the model's directory. dummy: random weights made on the "
       "device, for which config.json is enough; for benchmarks.",
       ChoiceValue{&C::load, {"checkpoint", "dummy"}}},
      {"slice", "Model",
       "With load: dummy. layers=N: the first N layers; epN: the experts of one of N ranks.",
       FormValue{&C::slice, kModelSlices, IsSlice}},
  };
}

std::vector<ConfigKey> DeviceKeys() {
  return {
      {"device", "Computation",
       "Where the model runs. cuda: the first CUDA device, or as many as there are ranks; "
       "cuda:0,2: these, rank by rank. A build without CUDA has the CPU only.",
       FormValue{&C::device, kDeviceNames, IsDevice}},
      {"threads", "Computation",
       "Threads of the CPU backend. 0: one for every CPU that the process may use by its affinity "
       "mask and, rounded up, by the CPU quota of its container.",
       IntValue{&C::threads, 0, 1024}},
      {"tensor_parallel_size", "Computation",
       "Ranks that the model is split over: attention heads, widths of MLPs and experts, rows of "
       "the head. It divides the heads. On the CPU ranks are threads of the process and share "
       "`threads`; on CUDA each has a device of its own, at most 8.",
       IntValue{&C::tensor_parallel_size, 1, 64}},
      {"data_parallel_size", "Computation",
       "Data ranks, each with all of attention and with sequences and caches of its own, of as "
       "many "
       "tensor ranks as tensor_parallel_size says; the routed experts are over the ranks of all. "
       "With expert_parallel, for a model that has routed experts.",
       IntValue{&C::data_parallel_size, 1, 64}},
      {"expert_parallel", "Computation",
       "true: each rank holds some of the routed experts whole, not a part of every one. Only with "
       "several ranks.",
       SwitchValue{&C::expert_parallel}},
      {"collectives", "Computation",
       "What ranks on CUDA add up and gather through. peer: each other's memory; nccl: NCCL, which "
       "is slower, and adds in the order of ranks for two of them alone; auto: peer where all see "
       "each other's memory, else nccl. The log names it.",
       ChoiceValue{&C::collectives, {"auto", "peer", "nccl"}}},
      {"attention", "Computation",
       "sparse: over the indexer's selection; dense: the same weights without selection.",
       ChoiceValue{&C::attention, {"sparse", "dense"}}},
      {"masked_mha_until", "Computation",
       "Prompt rows below this position attend with expanded keys under the selection's mask, "
       "where at least 192 of a prompt are to be computed. 0: none do. auto: on CUDA up to where "
       "it is faster, measured at start, rounded to 1,024 and logged; 0 on the CPU. Results "
       "depend on it within their rounding: a number pins them (docs/numerics.md).",
       AutomaticIntValue{&C::masked_mha_until, 0, kTokensMax}},
      {"batch_invariant", "Computation",
       "true: how attention sums over a row's keys follows from their number alone, never from the "
       "batch, at some cost in speed. The CPU always computes so; what else depends on the batch "
       "on CUDA: docs/numerics.md.",
       SwitchValue{&C::batch_invariant}},
      {"kv_cache_dtype", "Cache",
       "Format of the paged caches. auto: fp8 for a quantized checkpoint, otherwise its own type.",
       ChoiceValue{&C::kv_cache_dtype, {"auto", "fp8", "bf16", "f32"}}},
      {"kv_cache_memory_bytes", "Cache",
       "Memory of the paged caches, of each rank. 0: as much as max_num_seqs sequences of "
       "max_model_len can use, at most what memory is free (on the CPU 1 GiB and a quarter of it), "
       "at least one such sequence.",
       IntValue{&C::kv_cache_memory_bytes, 0, kBytesMax}},
      {"device_memory_reserve_bytes", "Cache",
       "Memory of a CUDA device that nothing is sized into: for graphs, for kernels that are "
       "loaded "
       "when they first run and for the driver. Without effect on the CPU.",
       IntValue{&C::device_memory_reserve_bytes, 0, kBytesMax}},
  };
}

std::vector<ConfigKey> LimitKeys() {
  return {
      {"max_model_len", "Limits",
       "Tokens of prompt and answer together. 0: what the model was made for.",
       IntValue{&C::max_model_len, 0, kTokensMax}},
      {"max_num_seqs", "Limits",
       "Sequences that take part in steps at once. 0: 256, or max_num_batched_tokens where that is "
       "less.",
       IntValue{&C::max_num_seqs, 0, 65536}},
      {"max_num_batched_tokens", "Limits",
       "Tokens that one step computes; longer prompts are computed in chunks. At least "
       "max_num_seqs.",
       IntValue{&C::max_num_batched_tokens, 1, 1 << 20}},
      {"step_time_target_ms", "Limits",
       "Milliseconds that a step with replies should take, by what steps are measured to cost: "
       "prompts get what time their replies leave, at least 16 tokens; a step without replies may "
       "take four times as long. -1: 250 on the CPU, 50 on a GPU. 0: steps are bounded by their "
       "tokens alone.",
       IntValue{&C::step_time_target_ms, -1, 60'000}},
      {"max_queued_requests", "Limits",
       "Requests that wait; more are refused with RESOURCE_EXHAUSTED.",
       IntValue{&C::max_queued_requests, 1, 1 << 20}},
      {"max_tokens_default", "Limits",
       "Tokens of an answer whose request names no max_tokens, where the context leaves so many.",
       IntValue{&C::max_tokens_default, 1, kTokensMax}},
      {"scheduling_policy", "Limits",
       "Who goes first. fcfs: who came first; priority: the lower priority of the request.",
       ChoiceValue{&C::scheduling_policy, {"fcfs", "priority"}}},
      {"preemption", "Limits",
       "recompute: a sequence may lose its blocks to one before it and is computed again; none: a "
       "sequence starts only when the blocks for all it can become are free.",
       ChoiceValue{&C::preemption, {"recompute", "none"}}},
      {"price_per_hour_cents", "Limits",
       "What an hour of the device costs, in cents: with it, a request that asks for its cost is "
       "told "
       "dollars. 0: microseconds alone.",
       IntValue{&C::price_per_hour_cents, 0, 10'000'000}},
  };
}

std::vector<ConfigKey> ServingKeys() {
  return {
      {"listen", "Listening",
       "Address and port to listen on, or unix:/PATH. Port 0: one that is free; the log names it. "
       "0.0.0.0 is every address of IPv4, [::] of both families. "
       "An address other than loopback or a path only together with insecure.",
       TextValue{&C::listen}},
      {"http_listen", "Listening",
       "As listen, for OpenAI's API over HTTP (docs/http.md). Empty: not served.",
       TextValue{&C::http_listen}},
      {"http_strict", "Listening",
       "Fields of an HTTP request that neither OpenAI's nor vLLM's documentation knows are "
       "refused, not ignored.",
       SwitchValue{&C::http_strict}},
      {"insecure", "Listening",
       "Listen beyond this machine although there is neither encryption nor authentication.",
       SwitchValue{&C::insecure}},
      {"max_message_bytes", "Listening",
       "Bytes of a request; larger ones are RESOURCE_EXHAUSTED, and 413 over HTTP.",
       IntValue{&C::max_message_bytes, 1024, 256 * kMiB}},
      {"max_connections", "Listening",
       "Open connections, of gRPC and of HTTP each; one more is closed at once. 0: 1024, or what "
       "the limit of descriptors leaves, three for each of gRPC and one for each of HTTP.",
       IntValue{&C::max_connections, 0, 65536}},
      {"max_concurrent_streams", "Listening", "Open calls of one connection.",
       IntValue{&C::max_concurrent_streams, 1, 65536}},
      {"max_cancels_per_s", "Listening",
       "Calls that one connection may cancel each second, and ten times as many at once; one that "
       "cancels more is ended (docs/errors.md). More for a proxy that brings many clients over "
       "one.",
       IntValue{&C::max_cancels_per_s, 1, 1'000'000}},
      {"shutdown_timeout_s", "Listening",
       "Seconds that running requests get to finish after SIGTERM, SIGINT or SIGHUP.",
       IntValue{&C::shutdown_timeout_s, 0, 86400}},
      {"stall_timeout_s", "Listening",
       "Seconds without progress, while there is work, after which health says NOT_SERVING and, "
       "where it is the engine, the process ends with 5; or ten times what the step should take, "
       "if "
       "that is more.",
       IntValue{&C::stall_timeout_s, 1, 86400}},
      {"log_level", "Logs", "The least level that is logged.",
       ChoiceValue{&C::log_level, {"debug", "info", "warning", "error"}}},
      {"log_format", "Logs", "auto: text on a terminal, otherwise one JSON object a line.",
       ChoiceValue{&C::log_format, {"auto", "text", "json"}}},
  };
}

}  // namespace

const std::vector<ConfigKey>& ConfigKeys() {
  static const std::vector<ConfigKey> keys = [] {
    std::vector<ConfigKey> all = ModelKeys();
    for (const std::vector<ConfigKey>& more : {DeviceKeys(), LimitKeys(), ServingKeys()}) {
      all.insert(all.end(), more.begin(), more.end());
    }
    return all;
  }();
  return keys;
}

}  // namespace dsa
