#!/usr/bin/env bash
# clients.sh DSA [install|run]: other people's clients, and ours, against `dsa serve` with the small model
# on the CPU: openai, xai-sdk, the router SMG and clients/python, as tests/clients/requirements.txt pins
# them, in a virtual environment of their own.  Without a second argument, both steps.
set -euo pipefail
cd "$(dirname "$0")/.."

dsa=$1
step=${2:-all}
environment=build/clients
log=build/clients-install.log
mkdir -p build

if [[ $step != run ]]; then
  wanted=$(cat tests/clients/requirements.txt clients/python/*.* clients/python/dsa_client/* proto/*.proto | sha256sum)
  if [[ $(cat "$environment/wanted" 2>/dev/null) != "$wanted" ]]; then
    rm -rf "$environment"
    if ! { python3 -m venv "$environment" &&
      "$environment/bin/pip" install -r tests/clients/requirements.txt ./clients/python; } >"$log" 2>&1; then
      tail -n 5 "$log" >&2
      echo "error: the clients cannot be installed; full log: $log" >&2
      exit 2
    fi
    echo "$wanted" >"$environment/wanted"
  fi
fi
if [[ $step != install ]]; then
  DSA=$(realpath "$dsa") "$environment/bin/python" -m pytest -q -p no:cacheprovider --durations=3 tests/clients
fi
