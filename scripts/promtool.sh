#!/usr/bin/env bash
# promtool of Debian's Prometheus into .venv, for the tests of the alert rules: no root, and no Prometheus is installed.
# Where it cannot be had those tests skip.
set -euo pipefail
cd "$(dirname "$0")/.."

! command -v promtool >/dev/null && [ ! -x .venv/bin/promtool ] || exit 0
command -v apt-get >/dev/null || { echo "[promtool] no apt-get: tests of alert rules will be skipped"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq prometheus >/dev/null 2>&1 ||
    { apt-get update -qq >/dev/null 2>&1 && apt-get download -qq prometheus >/dev/null 2>&1; } ||
    { echo "[promtool] Debian's prometheus cannot be had: tests of alert rules will be skipped"; exit 0; }
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
cd - >/dev/null
install -m 0755 "$folder/usr/bin/promtool" .venv/bin/promtool
echo "[promtool] $(.venv/bin/promtool --version 2>&1 | head -n 1)"
