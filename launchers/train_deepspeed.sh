#!/usr/bin/env bash
# One training started by DeepSpeed's launcher: this machine, or those of HOSTFILE ("host slots=8" a line, over ssh).
#
#   launchers/train_deepspeed.sh configs/lafand.toml --run-dir runs/first
#   HOSTFILE=hosts launchers/train_deepspeed.sh configs/lafand.toml
#   NUM_RANKS=2 MNMT_DEVICE=cpu launchers/train_deepspeed.sh configs/lafand.toml
set -euo pipefail

if [ "${MNMT_DEVICE:-}" = cpu ]; then
    export DS_ACCELERATOR=cpu
fi
if [ -n "${HOSTFILE:-}" ]; then
    # DeepSpeed would only warn about a missing file and train on this machine alone.
    [ -f "$HOSTFILE" ] || { echo "no such HOSTFILE: $HOSTFILE" >&2; exit 2; }
    where=(--hostfile "$HOSTFILE")
else
    num_ranks="${NUM_RANKS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
    port="${MASTER_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}"
    where=(--hostfile /dev/null --num_gpus "$num_ranks" --master_port "$port")
fi
# The module form of the launcher: it works where the script is not on the PATH.
exec python -m deepspeed.launcher.runner "${where[@]}" --module mnmt_scale train "$@"
