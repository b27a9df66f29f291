#!/bin/sh
# Labels on a running Ray cluster, as a job whose output is followed here. It goes on if this shell ends.
#
#     ray dashboard launch/ray/cluster.yaml    in another shell: forwards the cluster's port 8265
#     launch/ray/label.sh pairs/ --judge runs/grpo -o labels/ --workers 16
#
# Paths are those in the cluster's shared folder. The same command again goes on where a job has stopped.
set -eu
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
# shellcheck disable=SC2016  # the shell of the job takes the arguments
exec ray job submit -- sh -c 'cd /work && exec lore label --ray auto "$@"' label "$@"
