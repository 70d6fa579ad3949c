#!/usr/bin/env bash
# supply_chain.sh audit: the locked packages against PyPI's database of known vulnerabilities. Needs the internet; a
# package that cannot be looked up fails the audit.
# supply_chain.sh sbom:  build/sbom-cpu.json and build/sbom-gpu.json, CycloneDX bills of materials of what is locked.
# The tools live in an environment of their own: what examines the packages is not one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=.venv-supply-chain
pins=(pip-audit==2.10.1 cyclonedx-bom==7.5.0)
if [ "$(cat "$tools/.pins" 2>/dev/null)" != "${pins[*]}" ]; then
    .venv/bin/python -m venv --clear "$tools"
    "$tools/bin/python" -m pip install --disable-pip-version-check --quiet "${pins[@]}"
    echo "${pins[*]}" >"$tools/.pins"
fi

# torch is installed on its own, so the locks leave it out; it belongs to what runs.
locked() {
    cat "requirements/$1.lock"
    sed -nE "s/^torch_version=(.*)/torch==\1/p" scripts/bootstrap.sh
}

mkdir -p build
case ${1:-} in
audit)
    failed=0
    for engine in cpu gpu; do
        locked "$engine" >"build/audit-$engine.txt"
        echo "$engine: $(wc -l <"build/audit-$engine.txt") packages"
        "$tools/bin/pip-audit" --requirement "build/audit-$engine.txt" --no-deps --disable-pip \
            --strict --progress-spinner off ||
            failed=1
    done
    exit "$failed"
    ;;
sbom)
    for engine in cpu gpu; do
        locked "$engine" | PYTHONWARNINGS=ignore "$tools/bin/cyclonedx-py" requirements --pyproject pyproject.toml --mc-type application \
            --output-reproducible --output-format JSON --output-file "build/sbom-$engine.json" -
        echo "build/sbom-$engine.json"
    done
    ;;
*)
    echo "usage: $0 audit|sbom" >&2
    exit 2
    ;;
esac
