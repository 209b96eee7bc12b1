#!/usr/bin/env bash
# One training on one machine, one rank per accelerator (or NUM_RANKS ranks on the CPU), started by torchrun.
#
#   launchers/train_torchrun.sh configs/lafand.toml --run-dir runs/first
#   NUM_RANKS=2 MNMT_DEVICE=cpu launchers/train_torchrun.sh configs/lafand.toml
#
# Several machines: run it on each with NNODES, NODE_RANK and MASTER_ADDR (host of node 0) set.
set -euo pipefail

num_ranks="${NUM_RANKS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
if [ "${NNODES:-1}" -gt 1 ]; then
    where=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
else
    where=(--standalone) # picks a free port
fi
exec python -m torch.distributed.run "${where[@]}" --nproc_per_node "$num_ranks" -m mnmt_scale train "$@"
