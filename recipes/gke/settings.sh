# The variables of recipes/gke/cluster.sh and recipes/gke/train.sh, which read this file.
# shellcheck shell=bash disable=SC2034

. "$(dirname "$0")/../need.sh"
need PROJECT "the id of the Google Cloud project"
need ZONE "the zone of the TPUs, in which the project has a quota for them"
need BUCKET "the name of the bucket, see recipes/bucket.sh"
CLUSTER=${CLUSTER:-fasseg}
NAME=${NAME:-fasseg} # of the run, gs://BUCKET/runs/NAME
ACCOUNT=${ACCOUNT:-fasseg} # the service account of recipes/bucket.sh
SLICES=${SLICES:-1}
TOPOLOGY=${TOPOLOGY:-4x4}                       # chips of each slice
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice} # these three belong together: v5e
MACHINE_TYPE=${MACHINE_TYPE:-ct5lp-hightpu-4t}
CHIPS=${CHIPS:-4} # of each host
JOBSET_VERSION=${JOBSET_VERSION:-v0.12.0}

for value in "$SLICES" "$CHIPS" "${TOPOLOGY//x/}"; do
  if ! [[ $value =~ ^[1-9][0-9]*$ ]]; then
    echo "${0##*/}: SLICES and CHIPS are whole numbers, and TOPOLOGY is like 4x4, not '$value'" >&2
    exit 2
  fi
done
HOSTS=$((${TOPOLOGY//x/*} / CHIPS)) # of each slice
REGION=${ZONE%-*}
IMAGE=${IMAGE:-$REGION-docker.pkg.dev/$PROJECT/fasseg/train:latest}
