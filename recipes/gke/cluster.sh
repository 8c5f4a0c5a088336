#!/usr/bin/env bash
# Make a GKE cluster with TPU slices of spot VMs, and the image to train with. It needs gcloud and kubectl.
#
#   PROJECT=my-project ZONE=us-west4-a BUCKET=my-bucket SLICES=2 recipes/gke/cluster.sh
#
# settings.sh lists the other variables. recipes/bucket.sh comes before, recipes/gke/train.sh after. What is there
# already stays as it is, so the command can be given again; it always makes a new image. The cluster costs until
#   gcloud container clusters delete CLUSTER --project=PROJECT --location=ZONE
set -euo pipefail
. "$(dirname "$0")/settings.sh"
cd "$(dirname "$0")/../.."

email=$ACCOUNT@$PROJECT.iam.gserviceaccount.com
gcloud services enable --project="$PROJECT" \
  artifactregistry.googleapis.com cloudbuild.googleapis.com container.googleapis.com

for role in roles/artifactregistry.reader roles/container.defaultNodeServiceAccount; do # of the nodes
  gcloud projects add-iam-policy-binding "$PROJECT" \
    --member="serviceAccount:$email" --role="$role" --condition=None >/dev/null
done
if ! gcloud artifacts repositories describe fasseg --project="$PROJECT" --location="$REGION" >/dev/null 2>&1; then
  gcloud artifacts repositories create fasseg --project="$PROJECT" --location="$REGION" --repository-format=docker
fi
gcloud builds submit --project="$PROJECT" --config=recipes/gke/cloudbuild.yaml --substitutions="_IMAGE=$IMAGE" .

if ! gcloud container clusters describe "$CLUSTER" --project="$PROJECT" --location="$ZONE" >/dev/null 2>&1; then
  gcloud container clusters create "$CLUSTER" --project="$PROJECT" --location="$ZONE" \
    --num-nodes=1 --machine-type=e2-standard-4 --release-channel=regular --service-account="$email"
fi
for ((slice = 0; slice < SLICES; slice++)); do
  pool=(--cluster="$CLUSTER" --project="$PROJECT" --location="$ZONE")
  if ! gcloud container node-pools describe "slice-$slice" "${pool[@]}" >/dev/null 2>&1; then
    gcloud container node-pools create "slice-$slice" "${pool[@]}" \
      --machine-type="$MACHINE_TYPE" --tpu-topology="$TOPOLOGY" --num-nodes="$HOSTS" --spot \
      --service-account="$email" --scopes=cloud-platform
  fi
done

gcloud container clusters get-credentials "$CLUSTER" --project="$PROJECT" --location="$ZONE"
kubectl apply --server-side \
  --filename="https://github.com/kubernetes-sigs/jobset/releases/download/$JOBSET_VERSION/manifests.yaml"
kubectl wait --namespace=jobset-system --for=condition=Available --timeout=300s deployment/jobset-controller-manager
echo "The cluster $CLUSTER is ready: $SLICES x $TOPOLOGY chips, and the image $IMAGE."
