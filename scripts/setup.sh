#!/usr/bin/env bash
# Makes the virtual environment of the lock, with the project in it and the Triton server beside it.
# Nothing is done when neither the lock nor the project has changed. `make setup` sets the variables.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3.11}
venv=${VENV:-.venv}
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
log=build/setup.log
stamp=$venv/.medvl-setup
needed_kib=$((8 * 1024 * 1024))
export SAM2_BUILD_CUDA=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

fail() {
  printf 'setup: %s\n' "$1" >&2
  exit 1
}

fingerprint() {
  cat requirements/lock-cpu.txt requirements/lock-cpu-source.txt pyproject.toml scripts/setup.sh | sha256sum
}

done_already() {
  [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]
}

check_machine() {
  command -v "$python" >/dev/null || fail "$python is not on the PATH: install Python 3.11, or name one with make PYTHON=..."
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
    fail "$python is not a working Python 3.11, for which the lock is made: install it, or name one with make PYTHON=..."
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments: install the package python3.11-venv."
  command -v cc >/dev/null || fail "There is no C compiler (cc): install gcc or clang."
  local free_kib
  free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free_kib" -ge "$needed_kib" ] ||
    fail "The disk has $((free_kib >> 20)) GiB free but the environment needs $((needed_kib >> 20)): free some space."
}

why_pip_failed() {
  if grep -qiE 'failed to establish|connection (broken|refused|reset)|name resolution|timed out|unreachable|proxyerror' "$log"; then
    echo "The package index cannot be reached: check the network and pip's settings"
  elif grep -qi 'no space left' "$log"; then
    echo "The disk ran full: free some space"
  elif grep -qi 'do not match the hashes' "$log"; then
    echo "A package is not the one that the lock names: check the package index, and do not use the file"
  elif grep -qi 'no matching distribution' "$log"; then
    echo "The package index lacks a locked package: check pip's index settings"
  else
    echo "pip failed"
  fi
}

pip() {
  "$venv/bin/python" -m pip "$@" >>"$log" 2>&1 || fail "$(why_pip_failed) (details in $log)."
}

# PyTorch's CPU builds are on its own index, unless this machine's index mirrors them.
torch_options() {
  local build
  build=$(sed -n 's/^torch==\([^ ]*\) .*/\1/p' requirements/lock-cpu.txt)
  "$venv/bin/python" -m pip index versions torch 2>/dev/null | grep -qF "$build" || echo "--extra-index-url=$torch_index"
}

install_lock() {
  local options
  options=$(torch_options)
  echo "setup: installing the locked packages (some minutes)"
  pip install --no-deps --require-hashes --only-binary=:all: $options -r requirements/lock-cpu.txt
  pip install --no-deps --require-hashes --no-build-isolation -r requirements/lock-cpu-source.txt
  pip install --no-deps --no-build-isolation --editable .
}

if ! done_already; then
  check_machine
  mkdir -p build
  : >"$log"
  rm -f "$stamp"
  "$venv/bin/python" -c '' 2>/dev/null || {
    echo "setup: making $venv"
    "$python" -m venv --clear "$venv" >>"$log" 2>&1 || fail "$venv cannot be made (details in $log)."
  }
  install_lock
  "$venv/bin/python" -m medvl.runtime.triton_home
  fingerprint >"$stamp"
  echo "setup: done"
fi
