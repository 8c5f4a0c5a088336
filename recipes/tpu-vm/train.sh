#!/usr/bin/env bash
# Train on a Cloud TPU slice of spot VMs, with any number of hosts, until the training is done.
#
#   PROJECT=my-project ZONE=us-west4-a BUCKET=my-bucket recipes/tpu-vm/train.sh --config.model.dtype=bfloat16
#
# It requests the slice (a queued resource), whose hosts then install and train by themselves (startup.sh, host.sh). It
# requests the slice again when Google takes it away or its hosts have given up, and deletes it when the training has
# ended. It exits with the training's status. Arguments are flags of the training.
#
# It only watches. If it is interrupted, the slice goes on, and costs; the same command watches again. To end the slice:
#   gcloud compute tpus queued-resources delete NAME --project=PROJECT --zone=ZONE --force
#
# It trains the last commit of this clone.
set -euo pipefail

. "$(dirname "$0")/../need.sh"
need PROJECT "the id of the Google Cloud project"
need ZONE "the zone of the TPUs, in which the project has a quota for them"
need BUCKET "the name of the bucket, see recipes/bucket.sh"
DATA=${DATA:-gs://$BUCKET/data/segmentation/ade20k/1.0.0} # as recipes/data.sh prints it
CONFIG=${CONFIG:-configs/ade20k.py:r50}
NAME=${NAME:-fasseg} # of the slice and of the run, gs://BUCKET/runs/NAME
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-16}
RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite} # the machines' image; it belongs to the accelerator
CAPACITY=${CAPACITY---spot}                              # or --guaranteed, --reserved, or empty: on demand
ACCOUNT=${ACCOUNT:-fasseg}                               # the service account of recipes/bucket.sh
REQUESTS=${REQUESTS:-100}                                # at most
POLL=${POLL:-60}                                         # seconds between looks

cd "$(dirname "$0")/../.."
arguments=("$@")
place=gs://$BUCKET/recipes/$NAME # what the hosts read, and where they say how they ended
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

say() { echo "train.sh: $*" >&2; }

queued_resources() { # command, then its arguments
  gcloud compute tpus queued-resources "$1" --project="$PROJECT" --zone="$ZONE" --quiet "${@:2}"
}

state() { # of the slice; empty if there is none; it fails if Google does not answer
  queued_resources list --format="value(name.basename(),state.state)" | awk -v name="$NAME" '$1 == name { print $2 }'
}

request() {
  gcloud storage rm --quiet "$place/ended/**" 2>/dev/null # fails if there is none
  {
    echo "#!/usr/bin/env bash"
    declare -p BUCKET NAME CONFIG DATA place arguments
    cat recipes/tpu-vm/startup.sh
  } >"$temporary/startup.sh" &&
    git archive --format=tar.gz --output="$temporary/source.tar.gz" HEAD -- . ":!docs" ":!tests" &&
    gcloud storage cp --quiet "$temporary/source.tar.gz" "$place/source.tar.gz" &&
    queued_resources create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR_TYPE" \
      --runtime-version="$RUNTIME_VERSION" --service-account="$ACCOUNT@$PROJECT.iam.gserviceaccount.com" \
      --metadata-from-file=startup-script="$temporary/startup.sh" ${CAPACITY:+"$CAPACITY"}
}

delete() {
  say "deleting the slice $NAME"
  queued_resources delete "$NAME" --force || say "it could not be deleted"
}

outcome() { # status of the training, or nothing as long as it goes on; each host has written "STATUS HOST"
  local status host result=
  while read -r status host; do
    if [ "$status" -ne 0 ] && [ "$status" -ne 75 ]; then
      result=$status # an error, which ends the others as well
      break
    elif [ "$host" -eq 0 ] && [ "$status" -eq 0 ]; then
      result=0 # the first host ends last: it writes the results
    elif [ -z "$result" ] && [ "$status" -eq 75 ]; then
      result=75
    fi
  done < <(gcloud storage cat "$place/ended/*" 2>/dev/null)
  echo "$result"
}

requests=0
before=
while true; do
  if ! now=$(state); then
    say "Google Cloud does not answer; trying again in $POLL s"
    sleep "$POLL"
    continue
  fi
  [ "$now" = "$before" ] || say "the slice $NAME is ${now:-not there}"
  before=$now
  result=
  if [ -z "$now" ]; then
    if [ "$requests" -ge "$REQUESTS" ]; then
      say "giving up after $requests requests for the slice"
      exit 75
    fi
    requests=$((requests + 1))
    say "request $requests of at most $REQUESTS for $ACCELERATOR_TYPE"
    if ! request && [ "$requests" -eq 1 ]; then
      exit 2 # a mistake: a later request may fail for other reasons
    fi
  else
    result=$(outcome)
  fi
  case $result in
    "")
      if [ "$now" = SUSPENDED ] || [ "$now" = FAILED ]; then
        delete # taken away, or not to be had
      fi
      ;;
    75)
      say "the hosts have given up; another slice continues the run"
      delete
      ;;
    *)
      delete
      say "the training ended with status $result; it is in gs://$BUCKET/runs/$NAME"
      [ -z "$(state)" ] || say "the slice is still there, and costs; delete it by the command in recipes/tpu-vm/train.sh"
      exit "$result"
      ;;
  esac
  sleep "$POLL"
done
