#!/usr/bin/env bash
# Run a training until it is done: start the same command again, which resumes, as long as that makes sense.
#
#   scripts/run_until_done.sh python train.py --config CONFIG --workdir WORKDIR
#
# It restarts after status 75 (interrupted and saved, or a host was lost) and after the end by a signal (a crash, or no
# memory). It ends with the command's status after 0 (done), 1 (an error that would come again) and 2 (wrong usage).
# SIGTERM and SIGINT reach the command as SIGTERM, at which it saves. Then nothing is restarted: the machine is about to
# go.
#
#   RESTARTS      how often to restart, by default 100
#   RESTART_WAIT  seconds to wait before, by default 10; lost hosts need a moment to notice that a run has ended
set -uo pipefail

restarts=${RESTARTS:-100}
wait_seconds=${RESTART_WAIT:-10}
for value in "$restarts" "$wait_seconds"; do
  if ! [[ $value =~ ^[0-9]+$ ]]; then
    echo "run_until_done.sh: RESTARTS and RESTART_WAIT are whole numbers, not '$value'" >&2
    exit 2
  fi
done
if [ $# -eq 0 ]; then
  echo "run_until_done.sh: name the command to run, e.g. run_until_done.sh python train.py --workdir WORKDIR" >&2
  exit 2
fi

child=
stopped=false
pass_on() {
  stopped=true
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null # not SIGINT, which a shell's background commands ignore
}
trap pass_on TERM INT

for ((started = 0; ; started++)); do
  "$@" &
  child=$!
  ! $stopped || pass_on # the signal came before the process had a number
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the command
    wait "$child"
    status=$?
  done
  child=
  if $stopped || { [ "$status" -ne 75 ] && [ "$status" -le 128 ]; }; then
    exit "$status"
  fi
  if [ "$started" -ge "$restarts" ]; then
    echo "run_until_done.sh: status $status after $restarts restarts; giving up" >&2
    exit "$status"
  fi
  echo "run_until_done.sh: status $status; restart $((started + 1)) of $restarts in $wait_seconds s" >&2
  sleep "$wait_seconds" &
  child=$!
  ! $stopped || pass_on
  wait "$child" # a sleep in the background, so that signals end it
  child=
  if $stopped; then
    exit "$status"
  fi
done
