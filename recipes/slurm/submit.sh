#!/usr/bin/env bash
# Train on GPU nodes under Slurm: install into a folder that all nodes see, and submit train.sbatch.
#
#   DATA=/shared/data/... WORKDIR=/shared/runs/r50 NODES=2 GPUS=8 \
#     recipes/slurm/submit.sh --config.model.dtype=bfloat16
#
# Give the command on a node with internet, in a clone that all nodes see. Arguments are flags of the training.
# Partition, account and the like are sbatch's own variables: SBATCH_PARTITION, SBATCH_ACCOUNT. The same command
# continues a run. DATA and WORKDIR may be in a bucket, gs://BUCKET/...
set -euo pipefail

. "$(dirname "$0")/../need.sh"
need DATA "the prepared data: the folder that python -m fasseg_jax.data.tfds prints"
need WORKDIR "the run's folder, which all nodes see"
export DATA WORKDIR
export CONFIG=${CONFIG:-configs/ade20k.py:r50}
export RESTARTS=${RESTARTS:-100} # at most
NODES=${NODES:-1}
GPUS=${GPUS:-8}              # of each node
CPUS=${CPUS:-8}              # for each GPU
TIME=${TIME:-24:00:00}       # then the training is saved, and goes back to the queue
ACCELERATOR=${ACCELERATOR:-cuda13} # the file of recipes/constraints, and the extra of pyproject.toml
UV_VERSION=${UV_VERSION:-0.13.9}

cd "$(dirname "$0")/../.."
export ENVIRONMENT=${ENVIRONMENT:-$PWD/.venv/$ACCELERATOR}
if ! [ -e "$ENVIRONMENT/installed" ]; then
  if ! command -v uv >/dev/null; then
    curl --silent --show-error --fail --location "https://astral.sh/uv/$UV_VERSION/install.sh" |
      env UV_UNMANAGED_INSTALL="$PWD/.venv/bin" sh
    export PATH=$PWD/.venv/bin:$PATH
  fi
  uv venv --clear --python 3.11 "$ENVIRONMENT"
  uv pip install --python "$ENVIRONMENT/bin/python" \
    --constraints "recipes/constraints/$ACCELERATOR.txt" ".[$ACCELERATOR,gcs,tfds]"
  touch "$ENVIRONMENT/installed"
fi
# A task for each GPU: so JAX divides them under Slurm.
sbatch --nodes="$NODES" --gpus-per-node="$GPUS" --ntasks-per-node="$GPUS" --cpus-per-task="$CPUS" --time="$TIME" \
  recipes/slurm/train.sbatch "$@"
