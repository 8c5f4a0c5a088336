#!/usr/bin/env bash
# Put a data set into a bucket, as a few large array_record files. It needs uv, and space for the data set, twice.
#
#   BUCKET=my-bucket recipes/data.sh                            downloads ADE20K (0.9 GB) from its authors
#   BUCKET=my-bucket recipes/data.sh FOLDER                     takes a copy of it that is here
#   BUCKET=my-bucket CONFIG=configs/folder.py:FOLDER recipes/data.sh FOLDER       another data set
#
# The last line says where to train from: DATA of the other recipes.
set -euo pipefail

. "$(dirname "$0")/need.sh"
need BUCKET "the name of the bucket"
CONFIG=${CONFIG:-configs/ade20k.py:r50}
ADE20K=${ADE20K:-http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip}

folder=${1:-ADEChallengeData2016}
[[ $folder = /* ]] || folder=$PWD/$folder
repository=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -eq 0 ] && [ ! -d "$folder" ]; then
  curl --fail --location --continue-at - --output "$folder.zip" "$ADE20K"
  uv run --no-project --python 3.11 python -m zipfile -e "$folder.zip" "$(dirname "$folder")"
fi
if [ ! -d "$folder" ]; then
  echo "data.sh: there is no folder $folder" >&2
  exit 2
fi
cd "$repository"
uvx --python 3.11 --constraints recipes/constraints/data.txt --from ".[gcs,tfds]" \
  python -m fasseg_jax.data.tfds --config "$CONFIG" --config.data.root="$folder" --output "gs://$BUCKET/data"
