#!/usr/bin/env bash
# Train on the cluster of recipes/gke/cluster.sh, with the same variables, by a JobSet (jobset.yaml).
#
#   PROJECT=my-project ZONE=us-west4-a BUCKET=my-bucket SLICES=2 \
#     recipes/gke/train.sh --config.model.dtype=bfloat16
#
# Arguments are flags of the training. With RENDER=true it only prints the JobSet.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
DATA=${DATA:-gs://$BUCKET/data/segmentation/ade20k/1.0.0} # as recipes/data.sh prints it
CONFIG=${CONFIG:-configs/ade20k.py:r50}
RESTARTS=${RESTARTS:-100}

FLAGS= # each in YAML's single quotes
for argument in "$@"; do
  FLAGS+=", '${argument//\'/\'\'}'"
done
jobset=$(<"$(dirname "$0")/jobset.yaml")
for variable in NAME IMAGE BUCKET DATA CONFIG RESTARTS SLICES HOSTS CHIPS ACCELERATOR TOPOLOGY FLAGS; do
  jobset=${jobset//"\${$variable}"/"${!variable}"}
done
if [ "${RENDER:-false}" = true ]; then
  echo "$jobset"
  exit
fi
gcloud container clusters get-credentials "$CLUSTER" --project="$PROJECT" --location="$ZONE"
echo "$jobset" | kubectl create --filename=-
echo "To see how it goes, to read the first host's log, and to end it (the same command then continues the run):"
echo "  kubectl get jobset $NAME"
echo "  kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
echo "  kubectl delete jobset $NAME"
