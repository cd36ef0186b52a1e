#!/usr/bin/env bash
# fairness.sh DSA PAIRS FOLDER: a prompt of 16,384 tokens beside eight replies of the small model, and
# three newcomers of 10 tokens, with step_time_target_ms 250 and 0 in turn; what the first costs the
# prompt and spares the others.  Two minutes a pair; a machine that does nothing else.
set -euo pipefail

dsa=$1 pairs=$2 folder=$3
model=$(cd "$(dirname "$0")/../models/dsa-tiny" && pwd)
mkdir -p "$folder"
server=
trap 'kill "$server" 2>/dev/null || true' EXIT

python3 - >"$folder/trace.jsonl" <<'E2'
import itertools, json
blocks = itertools.count(1)
def line(at_ms, tokens, answer):
    print(json.dumps({'timestamp': at_ms, 'input_length': tokens, 'output_length': answer,
                      'hash_ids': list(itertools.islice(blocks, -(-tokens // 512)))}))
for _ in range(8):
    line(0, 64, 700)
line(5000, 16384, 1)
for at_ms in (12000, 17000, 22000):
    line(at_ms, 10, 1)
E2

run() {
  "$dsa" serve "$model" --device cpu --listen 127.0.0.1:15926 --kv-cache-memory-bytes 200000000 \
    --step-time-target-ms "$1" 2>"$folder/server.log" &
  server=$!
  until [[ $("$dsa" healthcheck --address 127.0.0.1:15926 2>/dev/null) == SERVING ]]; do
    kill -0 "$server"
    sleep 0.1
  done
  rm -rf "$folder/out"
  "$dsa" bench serve --address 127.0.0.1:15926 --dataset mooncake \
    --dataset-path "$folder/trace.jsonl" --trace-speed 1 --warmup-requests 0 \
    --output "$folder/out" >"$folder/bench.log" 2>&1
  ticks=$(awk '{ print $14 + $15 }' "/proc/$server/stat")
  kill "$server"
  wait "$server"
  python3 - "$1" "$ticks" "$folder" <<'E2'
import json, sys
target, ticks, folder = sys.argv[1:]
rows = [json.loads(line) for line in open(f'{folder}/out/profile_export.jsonl')]
of = lambda tokens: [r for r in rows
                     if r['metrics'].get('input_sequence_length', {}).get('value') == tokens]
prompt = of(16384)[0]['metadata']
begin, end = prompt['request_start_ns'], prompt['request_end_ns']
gaps = []
for reply in of(64):
    at = reply['metadata']['request_start_ns'] + reply['metrics']['time_to_first_token']['value'] * 1e6
    for gap in reply['metrics']['inter_chunk_latency']['value']:
        if begin < at < end:
            gaps.append(gap)
        at += gap * 1e6
gaps.sort()
newcomers = [round(r['metrics']['time_to_first_token']['value']) for r in of(10)]
print(f'target {target} ms: prompt {(end - begin) / 1e9:.1f} s, processor {int(ticks) / 100:.1f} s, '
      f'ITL p50 {gaps[len(gaps) // 2]:.0f} p99 {gaps[int(len(gaps) * .99)]:.0f} ms, '
      f'newcomers {newcomers} ms', flush=True)
with open(f'{folder}/prompt-{target}.txt', 'a') as file:
    print((end - begin) / 1e9, file=file)
E2
}

rm -f "$folder"/prompt-*.txt
for ((pair = 0; pair < pairs; ++pair)); do
  echo "load average $(cut -d' ' -f1-3 /proc/loadavg)"
  run $((pair % 2 == 0 ? 250 : 0))
  run $((pair % 2 == 0 ? 0 : 250))
done
python3 - "$folder" <<'E2'
import statistics, sys
median = lambda target: statistics.median(
    float(line) for line in open(f'{sys.argv[1]}/prompt-{target}.txt'))
print(f'the prompt takes {100 * (median(250) / median(0) - 1):+.1f} % with 250 ms (medians)')
E2
