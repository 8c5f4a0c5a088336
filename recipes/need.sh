# A function that the recipes read: it ends a program if a variable is missing, and names it.
# shellcheck shell=bash

need() { # variable, what it is
  if [ -z "${!1:-}" ]; then
    echo "${0##*/}: set $1, $2" >&2
    exit 2
  fi
}
