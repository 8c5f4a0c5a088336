# Each host of the slice runs this as root whenever it starts. recipes/tpu-vm/train.sh writes the variables above it.
# It fetches the source, and starts host.sh as a service: `journalctl --unit=fasseg` shows what that prints.
# shellcheck shell=bash disable=SC2154
set -uo pipefail
FOLDER=${FOLDER:-/opt/fasseg}

mkdir -p "$FOLDER"
cd "$FOLDER" || exit 1
declare -p BUCKET NAME CONFIG DATA place arguments >settings.sh
until gcloud storage cp "$place/source.tar.gz" - | tar -xz; do
  echo "startup.sh: $place/source.tar.gz cannot be fetched; trying again"
  sleep 10
done
# After the network, so that at the end the service stops before it: then the training saves a checkpoint.
systemd-run --unit=fasseg --property=After=network-online.target --property=TimeoutStopSec=60 \
  "$FOLDER/recipes/tpu-vm/host.sh"
