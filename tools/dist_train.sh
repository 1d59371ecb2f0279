#!/usr/bin/env bash
# Train on the GPUs of this machine, or as one of several machines (see docs/training.md):
#   bash tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Variables: NNODES, NODE_RANK, MASTER_ADDR, PORT (default: 29500 for several machines, a free port for one machine);
# PYTHON (default: the active one).
# Without a GPU, GPUS is the number of processes on the CPU.
set -euo pipefail
source "$(dirname "$0")/launch.sh"
if [ $# -lt 2 ]; then
    echo "usage: bash $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
shift 2

choose_python
choose_meeting

# torchrun, run by the chosen Python
exec "$python" -m torch.distributed.run "${meeting[@]}" --nproc-per-node="$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
