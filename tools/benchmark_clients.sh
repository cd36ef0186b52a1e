#!/usr/bin/env bash
# benchmark_clients.sh DSA: aiperf, and lm-eval's local-completions, against `dsa serve` with the small
# model on the CPU, as tests/clients/requirements-benchmarks.txt pins them.  From any folder; not a part
# of `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."

dsa=$1
environment=build/benchmark-clients
log=build/benchmark-clients-install.log
logs=build/benchmark-clients-logs
url=http://127.0.0.1:8552
mkdir -p build
if [[ ! -e $environment/done ]]; then
  rm -rf "$environment"
  if ! { python3 -m venv "$environment" &&
    "$environment/bin/pip" install -r tests/clients/requirements-benchmarks.txt; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "error: the benchmarks cannot be installed; full log: $log" >&2
    exit 2
  fi
  touch "$environment/done"
fi

source tools/serving.sh
start_serving "$dsa" 127.0.0.1:50552 build/benchmark-clients-server.log \
  --config configs/tiny_cpu.json --http-listen "${url#http://}"

# Without config.json, from which they would take another tokenizer.
mkdir -p build/tokenizer
cp models/dsa-tiny/tokenizer.json models/dsa-tiny/tokenizer_config.json build/tokenizer/

rm -rf "$logs"
mkdir -p "$logs"

# evaluate TASK PROMPTS MODEL_ARGUMENTS: so many prompts a request; lm-eval's own output is shown and kept.
evaluate() {
  local log="$logs/lm-eval-$1-$2.log"
  "$environment/bin/lm_eval" --model local-completions --tasks "$1" --include_path tests/clients/lm_eval \
    --batch_size "$2" \
    --model_args "model=dsa-tiny,base_url=$url/v1/completions,num_concurrent=4,$3" >"$log" 2>&1
  grep '^|' "$log"
}
for prompts in 1 8; do
  evaluate dsa_sums "$prompts" tokenizer_backend=none,tokenized_requests=False
  # A prompt and its answer are scored: echo with log-probabilities.
  evaluate dsa_choices "$prompts" "tokenizer=$PWD/build/tokenizer,tokenizer_backend=huggingface"
done

"$environment/bin/aiperf" profile -m dsa-tiny --url "$url" --endpoint-type chat --streaming \
  --tokenizer "$PWD/build/tokenizer" --concurrency 4 --request-count 24 \
  --synthetic-input-tokens-mean 100 --synthetic-input-tokens-stddev 0 --output-tokens-mean 20 \
  --extra-inputs ignore_eos:true --extra-inputs temperature:0 \
  --ui none --artifact-dir build/aiperf >"$logs/aiperf.log" 2>&1
cp build/aiperf/profile_export_aiperf.csv "$logs/aiperf.csv"
grep -E '^(Metric,V|Time to First Token|Inter Token Latency|Request Latency|Request Count|Request Error|Output Token Throughput \(|Benchmark D)' \
  "$logs/aiperf.csv"

stop_serving
grep -v '"message":"request"' build/benchmark-clients-server.log >"$logs/server.log"
# Nobody else has these folders, nor a terminal that shows colours.
sed -i -e "s#$PWD/##g" -e 's/\r/\n/g' -e 's/\x1b\[[0-9;]*m//g' "$logs"/*
echo "logs: $logs"
