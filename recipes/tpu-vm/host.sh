#!/usr/bin/env bash
# On each host of a slice: install Python, this project and the packages of recipes/constraints, train until the end,
# and write the status of the end to the bucket, where recipes/tpu-vm/train.sh reads it. startup.sh starts it.
#
# The machines' image (Ubuntu 22.04) comes with Python 3.10. uv brings the one that the project needs.
# shellcheck disable=SC2154
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. ./settings.sh # BUCKET, NAME, CONFIG, DATA, place, arguments
UV_VERSION=${UV_VERSION:-0.13.9}
export HOME=${HOME:-/root} # a service has none
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-gs://$BUCKET/cache}
export PATH=$PWD/bin:$PATH

attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
host=$(curl --silent --fail --header "Metadata-Flavor: Google" "$attributes/agent-worker-number") || host=0

end() { # status
  echo "host.sh: host $host ends with status $1"
  until echo "$1 $host" | gcloud storage cp - "$place/ended/$host"; do
    sleep 10
  done
  exit "$1"
}

install() {
  curl --silent --show-error --fail --location "https://astral.sh/uv/$UV_VERSION/install.sh" |
    env UV_UNMANAGED_INSTALL="$PWD/bin" sh &&
    uv venv --clear --python 3.11 venv &&
    uv pip install --python venv/bin/python --constraints recipes/constraints/tpu.txt ".[tpu,gcs,tfds]"
}

for attempt in 1 2 3; do
  if install; then
    break
  elif [ "$attempt" -eq 3 ]; then
    end 1
  fi
  sleep "${WAIT:-10}"
done
. venv/bin/activate
scripts/run_until_done.sh python train.py --config "$CONFIG" --config.data.source=tfds --config.data.root="$DATA" \
  --workdir "gs://$BUCKET/runs/$NAME" "${arguments[@]}"
end "$?"
