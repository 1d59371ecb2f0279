#!/usr/bin/env bash
# Test on the GPUs of this machine, or as one of several machines (see docs/training.md):
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of tools/test.py]
# Variables: NNODES, NODE_RANK, MASTER_ADDR, PORT (default: 29500 for several machines, a free port for one machine);
# PYTHON (default: the active one).
# Without a GPU, GPUS is the number of processes on the CPU.
set -euo pipefail
source "$(dirname "$0")/launch.sh"
if [ $# -lt 3 ]; then
    echo "usage: bash $0 CONFIG CHECKPOINT GPUS [arguments of tools/test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3

choose_python
choose_meeting

# torchrun, run by the chosen Python
exec "$python" -m torch.distributed.run "${meeting[@]}" --nproc-per-node="$gpus" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
