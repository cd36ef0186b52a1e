#!/usr/bin/env bash
# demo.sh DSA: serves the small model that ships with the server on the CPU, waits until it is
# healthy, asks it over gRPC, prints the streamed answers, and shuts the server down.
set -euo pipefail

dsa=$1
model=models/dsa-tiny
address=127.0.0.1:50551
log=build/demo-server.log

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

for question in 'What can you do?' 'What does abandon mean?' \
  'The code of the red lantern is 481. What is the code of the red lantern?'; do
  echo "you: $question" >&2
  "$dsa" chat --address "$address" --temperature 0 --max-tokens 64 "$question"
done

kill -TERM "$server"
wait "$server"
trap - EXIT
echo 'the server has shut down cleanly' >&2
