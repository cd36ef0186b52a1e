#!/usr/bin/env bash
# demo.sh DSA [DEVICE]: serves the small model that ships with the server on the CPU, or on DEVICE,
# waits until it is healthy, asks it over gRPC, prints the streamed answers, and shuts the server
# down.  From the root of the repository, or of what tools/gpu.sh packs.
set -euo pipefail

dsa=$1
device=${2:-cpu}
model=models/dsa-tiny
address=127.0.0.1:50551
log=build/demo-server.log
mkdir -p build

source tools/serving.sh
start_serving "$dsa" "$address" "$log" --config configs/tiny_cpu.json --model "$model" --device "$device"

for question in 'What can you do?' 'What does abandon mean?' \
  'The code of the red lantern is 481. What is the code of the red lantern?'; do
  echo "you: $question" >&2
  "$dsa" chat --address "$address" --temperature 0 --max-tokens 64 "$question"
done

stop_serving
echo 'the server has shut down cleanly' >&2
