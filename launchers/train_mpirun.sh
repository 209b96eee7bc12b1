#!/usr/bin/env bash
# One training started by Open MPI: NUM_RANKS ranks here, or on the hosts of HOSTFILE ("host slots=8" a line).
# The ranks find each other through mpi4py, or through MASTER_ADDR and MASTER_PORT where these are set.
#
#   NUM_RANKS=2 MNMT_DEVICE=cpu launchers/train_mpirun.sh configs/lafand.toml --run-dir runs/first
#   NUM_RANKS=16 HOSTFILE=hosts launchers/train_mpirun.sh configs/opus100.toml
set -euo pipefail

options=(-n "${NUM_RANKS:-1}")
if [ -n "${HOSTFILE:-}" ]; then
    [ -f "$HOSTFILE" ] || { echo "no such HOSTFILE: $HOSTFILE" >&2; exit 2; }
    options+=(--hostfile "$HOSTFILE")
fi
# Words of MPIRUN_OPTIONS go to mpirun as they are: --oversubscribe, --allow-run-as-root, -x NAME ...
# shellcheck disable=SC2206
options+=(${MPIRUN_OPTIONS:-})
exec mpirun "${options[@]}" python -m mnmt_scale train "$@"
