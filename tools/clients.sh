#!/usr/bin/env bash
# clients.sh DSA [install|run]: other people's clients, and ours, against `dsa serve` with the small model
# on the CPU: openai, xai-sdk, the router SMG and clients/python, as tests/clients/requirements.txt pins
# them, in a virtual environment of their own.  Without a second argument, both steps.
# Exit 3: no package index can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."

dsa=$1
step=${2:-all}
environment=build/clients
log=build/clients-install.log
mkdir -p build

if [[ $step != run ]]; then
  wanted=$(cat tests/clients/requirements.txt clients/python/*.{md,toml,py} clients/python/dsa_client/*.py proto/*.proto | sha256sum)
  if [[ $(cat "$environment/wanted" 2>/dev/null) != "$wanted" ]]; then
    rm -rf "$environment"
    if ! { python3 -m venv "$environment" &&
      "$environment/bin/pip" install -r tests/clients/requirements.txt ./clients/python; } >"$log" 2>&1; then
      tail -n 5 "$log" >&2
      # A wrong pin is an error; a machine without a package index is not.
      if "$environment/bin/pip" download -q --no-deps --dest "$environment" pip >/dev/null 2>&1; then
        echo "error: the clients cannot be installed; full log: $log" >&2
        exit 2
      fi
      echo 'error: there is no package index to install the clients from' >&2
      exit 3
    fi
    echo "$wanted" >"$environment/wanted"
  fi
fi
if [[ $step != install ]]; then
  # A client that waits for ever says where, and does not hold up everything: all take half a minute.
  DSA=$(realpath "$dsa") timeout --kill-after=30 900 "$environment/bin/python" -m pytest -q -p no:cacheprovider \
    -o faulthandler_timeout=200 --durations=3 tests/clients
fi
