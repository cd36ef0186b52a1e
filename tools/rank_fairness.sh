#!/usr/bin/env bash
# rank_fairness.sh DSA FOLDER TOKENS GAP_MS PROMPT SERVE_ARGUMENT...: serves, lets sixteen replies of TOKENS tokens
# (or REPLIES) run, eight on each of two data ranks, and sends four prompts of PROMPT tokens beside them, GAP_MS apart.
# Prints the gaps of all replies while a prompt is computed, and the others. Needs bash and awk alone.
set -euo pipefail

dsa=$1 folder=$2 tokens=$3 gap_ms=$4 prompt=$5
shift 5
mkdir -p "$folder"
address=127.0.0.1:50527
"$dsa" serve "$@" --listen "$address" 2>"$folder/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until [[ $("$dsa" healthcheck --address "$address" 2>/dev/null) == SERVING ]]; do
  kill -0 "$server" 2>/dev/null || { tail -n 3 "$folder/server.log" >&2; exit 1; }
  sleep 0.1
done

awk -v replies="${REPLIES:-16}" -v tokens="$tokens" -v gap="$gap_ms" -v prompt="$prompt" '
  function request(at, length_, answer,   ids) {
    for (ids = ""; length_ > 512 * count; ++count) ids = ids (count ? "," : "") ++block
    count = 0
    printf "{\"timestamp\":%d,\"input_length\":%d,\"output_length\":%d,\"hash_ids\":[%s]}\n", at, length_, answer, ids
  }
  BEGIN {
    for (i = 0; i < replies; ++i) request(0, 64, tokens)
    for (i = 1; i <= 4; ++i) request(i * gap, prompt, 1)
  }' >"$folder/trace.jsonl"
rm -rf "$folder/out"
"$dsa" bench serve --address "$address" --dataset mooncake --dataset-path "$folder/trace.jsonl" --trace-speed 1 \
  --warmup-requests 0 --output "$folder/out" >"$folder/bench.log" 2>&1 || { cat "$folder/bench.log" >&2; exit 1; }
kill "$server"
wait "$server"
trap - EXIT

# Once for the prompts' times, once for the replies' gaps.
awk -v prompt="$prompt" '
  function after(key,   at) {
    at = index($0, "\"" key "\":")
    return at ? substr($0, at + length(key) + 3) : ""
  }
  function number(key) { return match(after(key), /-?[0-9][0-9.e+]*/) ? substr(after(key), RSTART, RLENGTH) + 0 : 0 }
  function measured(key,   rest) {
    rest = after(key)
    return match(rest, /"value":-?[0-9][0-9.e+-]*/) ? substr(rest, RSTART + 8, RLENGTH - 8) + 0 : 0
  }
  function show(what, gaps, n) {
    asort_(gaps, n)
    if (n) printf "%s: %d gaps, p50 %.1f, p90 %.1f, p99 %.1f, most %.1f ms\n", what, n, gaps[int(n * .5) + 1],
      gaps[int(n * .9) + 1], gaps[int(n * .99) + 1], gaps[n]
  }
  function asort_(v, n,   gap, i, j, x) {
    for (gap = int(n / 2); gap > 0; gap = int(gap / 2.2))
      for (i = gap + 1; i <= n; ++i) {
        x = v[i]
        for (j = i; j > gap && v[j - gap] > x; j -= gap) v[j] = v[j - gap]
        v[j] = x
      }
  }
  BEGIN { origin = 0 }
  {
    if (!origin) origin = number("request_start_ns")
    start = (number("request_start_ns") - origin) / 1e6
  }
  NR == FNR {
    if (measured("input_sequence_length") == prompt) {
      begin[++prompts] = start
      end[prompts] = start + measured("request_latency")
      printf "prompt %d: %.0f ms\n", prompts, measured("request_latency")
    }
    next
  }
  measured("input_sequence_length") != prompt {
    at = start + measured("time_to_first_token")
    rest = after("inter_chunk_latency")
    match(rest, /\[[^]]*\]/)
    n = split(substr(rest, RSTART + 1, RLENGTH - 2), gaps, ",")
    for (i = 1; i <= n; ++i) {
      beside = 0
      for (k = 1; k <= prompts; ++k) beside = beside || (at < end[k] && at + gaps[i] > begin[k])
      if (beside) with[++withs] = gaps[i] + 0
      else without[++withouts] = gaps[i] + 0
      at += gaps[i]
    }
  }
  END { show("replies beside a prompt", with, withs); show("replies alone", without, withouts) }
' "$folder/out/profile_export.jsonl" "$folder/out/profile_export.jsonl"
