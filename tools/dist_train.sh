#!/usr/bin/env bash
# Train on the GPUs of this machine, or as one of several machines (see docs/training.md):
#   bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Variables: NNODES, NODE_RANK, MASTER_ADDR, PORT; PYTHON, if not the one that is active.
# Without a GPU, GPUS is a number of processes on the CPU.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2

# this is torchrun
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
