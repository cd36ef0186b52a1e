#!/usr/bin/env bash
# demo.sh DSA: serves a small model on the CPU, waits until it is healthy, asks it one question over
# gRPC, prints the streamed answer, and shuts the server down.
set -euo pipefail

dsa=$1
model=build/demo-model
address=127.0.0.1:50551
log=build/demo-server.log

if [[ ! -f $model/config.json ]]; then
  echo "writing a small random model to $model (its answers are babble)" >&2
  "$dsa" make-checkpoint --output "$model"
fi

"$dsa" serve --config configs/tiny_cpu.json --model "$model" --listen "$address" 2>"$log" &
server=$!
trap 'kill -TERM "$server" 2>/dev/null || true' EXIT

for ((attempt = 0; attempt < 300; ++attempt)); do
  "$dsa" healthcheck --address "$address" >/dev/null 2>&1 && break
  if ! kill -0 "$server" 2>/dev/null; then
    tail -n 5 "$log" >&2
    echo "error: the server ended before it was healthy; its log: $log" >&2
    exit 1
  fi
  sleep 0.1
done

question='Hello! What can you do?'
echo "you: $question" >&2
"$dsa" chat --address "$address" --max-tokens 48 "$question"

kill -TERM "$server"
wait "$server"
trap - EXIT
echo 'the server has shut down cleanly' >&2
