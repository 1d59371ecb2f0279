# Sourced by the launchers: choose the Python, and the address of the rendezvous of its processes.

# Sets `python`: PYTHON if given, else the active one; if that has no torch, the one of `make setup`.
choose_python() {
    python=${PYTHON:-python}
    if [ -z "${PYTHON:-}" ] && ! "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' \
            >/dev/null 2>&1; then
        python=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python
        if [ ! -x "$python" ]; then
            echo 'error: the active python has no torch: activate an environment that has rmt_mm, or name its Python by PYTHON.' >&2
            exit 1
        fi
    fi
}

# Sets `meeting`: on one machine without PORT, a free port that torchrun chooses; otherwise MASTER_ADDR and PORT.
choose_meeting() {
    local nodes=${NNODES:-1} rank=${NODE_RANK:-0} port=${PORT:-29500}
    if [ "$nodes" = 1 ] && [ -z "${PORT:-}" ]; then
        meeting=(--standalone --local-addr=127.0.0.1)
        return
    fi
    meeting=(--nnodes="$nodes" --node-rank="$rank" --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="$port")
    if [ "$rank" = 0 ] && ! "$python" -c 'import socket, sys; socket.create_server(("", int(sys.argv[1]))).close()' "$port" \
            >/dev/null 2>&1; then
        echo "error: port $port of this machine is taken, or none: name another one by PORT (on one machine, without PORT a free one is taken)." >&2
        exit 1
    fi
}
