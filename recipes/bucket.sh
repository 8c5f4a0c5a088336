#!/usr/bin/env bash
# Prepare a Google Cloud project, which may be empty: the APIs, a bucket, and a service account that may use it.
#
#   PROJECT=my-project REGION=us-west4 BUCKET=my-bucket recipes/bucket.sh
#
# What is there already stays as it is, so the command can be given again.
set -euo pipefail

. "$(dirname "$0")/need.sh"
need PROJECT "the id of the Google Cloud project"
need REGION "the region of the accelerators, such as us-west4: a bucket elsewhere is slower, and its traffic costs"
need BUCKET "a name for the bucket that nobody else has"
ACCOUNT=${ACCOUNT:-fasseg} # of the machines that train

email=$ACCOUNT@$PROJECT.iam.gserviceaccount.com
gcloud services enable --project="$PROJECT" \
  compute.googleapis.com iam.googleapis.com storage.googleapis.com tpu.googleapis.com
if ! gcloud storage buckets describe "gs://$BUCKET" --format="value(name)" >/dev/null 2>&1; then
  gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" --location="$REGION" \
    --uniform-bucket-level-access --public-access-prevention
fi
if ! gcloud iam service-accounts describe "$email" --project="$PROJECT" --format="value(email)" >/dev/null 2>&1; then
  gcloud iam service-accounts create "$ACCOUNT" --project="$PROJECT" --display-name="Training of fasseg_jax"
fi
for attempt in 1 2 3 4 5 6; do # a new account is known everywhere only after some seconds
  if gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" \
    --member="serviceAccount:$email" --role=roles/storage.objectUser >/dev/null; then
    break
  elif [ "$attempt" -eq 6 ]; then
    exit 1
  fi
  sleep "${WAIT:-10}"
done
echo "gs://$BUCKET is ready, and $email may read and write it."
