#!/usr/bin/env bash
# Makes the environment of one stack: tools/setup_env.sh openmmlab|onedl [ENV_DIR]
#
# mmcv has no wheel with compiled operators for a current torch, so it is compiled here, once: the wheel is kept
# in $RMT_MM_CACHE (default ~/.cache/rmt-mm) in a folder named after torch, Python and the accelerator, because
# pip's own cache knows mmcv's version alone and would reuse a wheel that crashes with another torch.
set -euo pipefail
cd "$(dirname "$0")/.."

stack=${1:?usage: tools/setup_env.sh openmmlab|onedl [ENV_DIR]}
case $stack in
  openmmlab) env=${2:-.venv} ;;
  onedl) env=${2:-.venv-onedl} ;;
  *) echo "setup: unknown stack '$stack': choose openmmlab or onedl" >&2; exit 2 ;;
esac
cache=${RMT_MM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rmt-mm}
base_python=${PYTHON:-python3.11}

say() { printf '[setup %s, %3ds] %s\n' "$stack" "$SECONDS" "$*"; }

# The stamp holds a digest of everything that decides what is installed.
wanted=$(cat tools/setup_env.sh setup.cfg requirements/{build,torch,dev,"$stack"}.txt | sha256sum)
if [ "$(cat "$env/.ready" 2>/dev/null)" = "$wanted" ] && [ -x "$env/bin/python" ]; then
  exit 0
fi
rm -f "$env/.ready"

if [ ! -x "$env/bin/python" ]; then
  command -v "$base_python" >/dev/null || {
    echo "setup: $base_python not found; name a Python 3.11 with PYTHON=/path/to/python" >&2; exit 1; }
  "$base_python" -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(v != "3.11" and f"setup: Python 3.11 is wanted, PYTHON is {v}: the pinned releases are tested with 3.11")'
  say "making $env"
  "$base_python" -m venv "$env"
fi
python="$PWD/$env/bin/python"
case $env in /*) python="$env/bin/python" ;; esac
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

say 'installing build tools and torch (a few minutes, 2-3 GB from the registry)'
pip install -q --progress-bar off -r requirements/build.txt -r requirements/torch.txt

# One folder for each thing that a compiled operator depends on.
abi=$("$python" -c 'import sys, torch
cuda = torch.version.cuda if torch.cuda.is_available() else None
print("torch%s-cp%d%d-%s" % (torch.__version__.split("+")[0], *sys.version_info[:2], f"cu{cuda}" if cuda else "cpu"))')
mmcv=$(grep -E '^(onedl-)?mmcv==' "requirements/$stack.txt")
wheels="$cache/wheels/$abi"
pattern="$wheels/$(echo "$mmcv" | sed 's/==/-/; s/onedl-mmcv/onedl_mmcv/')-*.whl"
mkdir -p "$wheels"
exec 9>"$wheels/.lock"
flock 9  # two set-ups at once share one compilation
if ! compgen -G "$pattern" >/dev/null; then
  say "compiling $mmcv: about 17 minutes on 2 cores, once for this torch (log: $wheels/build-${mmcv%%=*}.log)"
  new=$(mktemp -d "$wheels/building.XXXXXX")
  trap 'rm -rf "$new"' EXIT
  if ! MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} pip wheel --no-deps --no-build-isolation --no-cache-dir \
      --no-binary "${mmcv%%=*}" -w "$new" "$mmcv" >"$wheels/build-${mmcv%%=*}.log" 2>&1; then
    tail -n 30 "$wheels/build-${mmcv%%=*}.log" >&2
    echo "setup: compiling $mmcv failed; the whole log is $wheels/build-${mmcv%%=*}.log" >&2
    exit 1
  fi
  "$python" -m zipfile -t "$new"/*.whl >/dev/null
  mv "$new"/*.whl "$wheels/"  # a rename in one file system: the wheel is there whole or not at all
fi
flock -u 9

say "installing $mmcv from the cache, and the rest of the stack"
# shellcheck disable=SC2086  # the pattern is meant to expand
pip install -q --progress-bar off --no-deps $pattern
pip install -q --progress-bar off --no-build-isolation -r requirements/torch.txt -r "requirements/$stack.txt" -r requirements/dev.txt
pip install -q --progress-bar off --no-build-isolation -e .
"$python" -c 'import torchvision, mmcv.ops, mmdet, mmseg, mmpretrain, rmt_mm; print("  ready: torch", __import__("torch").__version__, "mmcv", mmcv.__version__, "mmdet", mmdet.__version__, "mmseg", mmseg.__version__, "mmpretrain", mmpretrain.__version__)'
echo "$wanted" >"$env/.ready"
say "$env is ready"
