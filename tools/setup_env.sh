#!/usr/bin/env bash
# Makes the environment of one stack: tools/setup_env.sh openmmlab|onedl. Described in docs/install.md.
#   ENV=DIR          set up there; a torch and mmcv that are there and work are kept
#   TORCH=VERSION    another torch than that of requirements/torch.txt, in .venv-torchVERSION
#   MMCV_WHEEL=FILE  install this wheel of mmcv instead of compiling one
#   PYTHON=PROGRAM   makes the environment (default python3.11)
#   RMT_MM_CACHE=DIR keeps compiled wheels and operators (default ~/.cache/rmt-mm)
#
# mmcv has no wheel with compiled operators for a current torch, so it is compiled here, once (tools/mmcv_wheel.py). The
# wheel is kept in a folder named after torch, Python and the accelerator: pip's own cache knows mmcv's version alone and
# would reuse a wheel that crashes with another torch.
set -euo pipefail
cd "$(dirname "$0")/.."

usage='usage: [ENV=DIR] [TORCH=VERSION] [MMCV_WHEEL=FILE] [PYTHON=PROGRAM] tools/setup_env.sh openmmlab|onedl'
say() { printf '[setup %s, %3ds] %s\n' "$stack" "$SECONDS" "$*"; }
fail() { echo "setup: $*" >&2; exit 1; }

[ $# = 1 ] || { echo "$usage" >&2; exit 2; }
stack=$1
case $stack in
  openmmlab) env=.venv ;;
  onedl) env=.venv-onedl ;;
  *) echo "setup: unknown stack '$stack': choose openmmlab or onedl" >&2; exit 2 ;;
esac
given_env=${ENV:-} torch=${TORCH:-} wheel=${MMCV_WHEEL:-}
[[ -z $torch || $torch =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "TORCH=$torch: a version such as 2.5.1 is wanted"
env=${given_env:-$env${torch:+-torch$torch}}
[ -z "$wheel" ] || [ -r "$wheel" ] || fail "MMCV_WHEEL=$wheel: there is no such file"
[ ! -e "$env" ] || [ -d "$env" ] || fail "ENV=$env is a file: name a folder"
mkdir -p "$env" 2>/dev/null || fail "ENV=$env: the folder cannot be made: name another"
env=$(cd "$env" && pwd)
cache=${RMT_MM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rmt-mm}
mkdir -p "$cache/wheels" 2>/dev/null || fail "RMT_MM_CACHE=$cache: the folder cannot be made: name another"
cache=$(cd "$cache" && pwd)
base_python=${PYTHON:-python3.11}
python=$env/bin/python
log=$env/setup.log
mmcv=$(grep -E '^(onedl-)?mmcv==' "requirements/$stack.txt")

trap 'echo >&2; fail "stopped: the same command continues where it was"' INT

exec 9>"$env/.lock"
flock -n 9 || { say "waiting for another set-up of $env"; flock 9; }

minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }
if [ -x "$python" ] && [ -n "${PYTHON:-}" ] && [ "$(minor "$PYTHON")" != "$(minor "$python")" ]; then
  fail "$env holds Python $(minor "$python"), and PYTHON is $(minor "$PYTHON"): leave PYTHON out, or name another folder \
with ENV"
fi

# Compiles our own operators if their sources have changed. RMT works without them, slower.
build_ops() {
  local sources
  sources=$(cat rmt_mm/ops/build.py rmt_mm/ops/csrc/* | sha256sum)
  [ "$(cat "$env/.ops" 2>/dev/null)" != "$sources" ] || return 0
  if RMT_MM_CACHE=$cache "$python" -m rmt_mm.build_ops 2>"$log"; then
    printf '%s' "$sources" >"$env/.ops"
  else
    tail -n 1 "$log" >&2
    say 'attention and depthwise convolutions are computed in plain torch: run the same command again once that is mended'
  fi
}

# The stamp holds a digest of all that decides what is installed, and the options. An option that is left out means: as
# it was set up.
digest=$(cat tools/{setup_env.sh,setup_plan.py,mmcv_wheel.py} setup.cfg requirements/{build,torch,dev,"$stack"}.txt | sha256sum)
options="TORCH=$torch MMCV_WHEEL=${wheel:+$(sha256sum <"$wheel")}"
stamped=$(cat "$env/.ready" 2>/dev/null || true)
if [ -x "$python" ] && [ "${stamped%%$'\n'*}" = "$digest" ]; then
  if [ "${stamped#*$'\n'}" = "$options" ] || [ -z "$torch$wheel" ]; then
    build_ops
    exit 0
  fi
fi
rm -f "$env/.ready"

# Fails with one sentence if pip fails, with pip's own words where they are needed.
pip() {
  "$python" -m pip --disable-pip-version-check "$@" >"$log" 2>&1 && return
  if grep -qE 'No space left on device' "$log"; then
    fail "the disk is full: make room, then run the same command (log: $log)"
  elif grep -qE 'NewConnectionError|Connection ?(Error|Refused|Reset)|Timeout|ProxyError|NameResolution|Max retries' "$log"
  then
    fail "pip cannot reach its package index: check the network and pip's index and proxy settings, then run the same \
command (log: $log)"
  fi
  tail -n 20 "$log" >&2
  fail "pip $1 failed: see above (log: $log)"
}

# room GIGABYTES DIR ...: what is needed in all of them that share a disk.
room() {
  declare -A wanted=()
  while [ $# -gt 0 ]; do
    disk=$(df --output=target "$2" | tail -n 1)
    wanted[$disk]=$((${wanted[$disk]:-0} + $1))
    free=$(($(df --output=avail -k "$2" | tail -n 1) >> 20))
    [ "$free" -ge "${wanted[$disk]}" ] || fail "the disk of $2 has $free GB free, and ${wanted[$disk]} GB are wanted: \
make room, or name other folders with ENV, RMT_MM_CACHE and TMPDIR"
    shift 2
  done
}

if [ ! -x "$python" ]; then
  command -v "$base_python" >/dev/null || fail "$base_python is not found: name a Python with PYTHON=/path/to/python"
  "$base_python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    fail "Python 3.9 or later is wanted, and $base_python is older: name another with PYTHON=/path/to/python"
  room 6 "$env" 3 "${TMPDIR:-/tmp}" 1 "$cache"
  say "making $env"
  "$base_python" -m venv --without-pip "$env"
fi
"$python" -m pip -V >/dev/null 2>&1 || "$python" -m ensurepip --default-pip >"$log" 2>&1 ||
  fail "$python has no pip and no ensurepip: install them (Debian: python3-venv) (log: $log)"

# An environment that was named keeps its setuptools: what compiling needs goes beside it.
if [ -n "$given_env" ]; then
  tools=$env/.build_tools isolation=''
  pip install -q --upgrade --target "$tools" -r requirements/build.txt
else
  tools='' isolation=--no-build-isolation
  pip install -q -r requirements/build.txt
fi
mmcv_wheel() { PYTHONPATH=$tools PATH=${tools:+$tools/bin:}$PATH "$python" tools/mmcv_wheel.py "$@"; }
name=${mmcv%%==*}
accepted=$(grep -E "^ +$name>" setup.cfg | tr -d ' ')
[ -z "$wheel" ] || mmcv_wheel check "$wheel" "$accepted"

torch_version=$("$python" tools/setup_plan.py "$env" "$stack" ${torch:+--torch "$torch"} ${given_env:+--keep})

# Before the long downloads: can mmcv be compiled, if it must be?
python_tag=cp$(minor "$python" | tr -d .)
if [ -z "$wheel" ] && ! grep -q "^$name==" "$env/.constraints.txt" &&
  ! compgen -G "$cache/wheels/torch$torch_version-$python_tag-*/${name/-/_}-${mmcv#*==}-*.whl" >/dev/null; then
  room 1 "$cache"  # its objects and the precompiled header
  mmcv_wheel tools
fi

long=''
! grep -q '^torch==' "$env/.requirements.txt" || long=', torch among them: minutes, 3 GB from the package index'
say "installing $(grep -c . "$env/.requirements.txt" || true) packages and what they need$long"
# Python compiles to bytecode what it imports; pip would compile all of it, which takes longer than unpacking it.
# shellcheck disable=SC2086  # no option where $isolation is empty
pip install -q --no-compile $isolation -c "$env/.constraints.txt" -r "$env/.requirements.txt" -e .

if [ -n "$wheel" ]; then
  mmcv_wheel try "$wheel"
elif ! { [ -n "$given_env" ] && mmcv_wheel installed "$accepted"; }; then
  wheels=$cache/wheels/$(mmcv_wheel key)
  mmcv_wheel build "$mmcv" "$wheels"
  wheel=$(compgen -G "$wheels/${name/-/_}-${mmcv#*==}-*.whl")
fi
if [ -n "$wheel" ]; then
  say "installing ${wheel##*/}"
  sed -i "/^$name==/d" "$env/.constraints.txt"
  pip install -q --no-deps --force-reinstall "$wheel"
  pip install -q -c "$env/.constraints.txt" "$accepted"  # what it needs itself
fi
"$python" - <<'PYTHON'
import mmcv, mmcv.ops, mmdet, mmpretrain, mmseg, torch, torchvision
import rmt_mm
print('  ready:', *(f'{module.__name__} {module.__version__}' for module in (torch, mmcv, mmdet, mmseg, mmpretrain)))
PYTHON
rm -f "$env/.ops"
build_ops
printf '%s\n%s' "$digest" "$options" >"$env/.ready"
say "$env is ready"
