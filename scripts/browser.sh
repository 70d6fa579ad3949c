#!/usr/bin/env bash
# The browser of tests/browser: Debian's Chromium, installed where it is missing and we may. The demo needs none.
set -euo pipefail

command -v chromium >/dev/null && exit 0
as_root=()
if [ "$(id -u)" != 0 ]; then
    as_root=(sudo -n)
fi
hint="run: apt-get update && apt-get install -y --no-install-recommends chromium"
command -v apt-get >/dev/null || { echo "browser: chromium is missing; install it by your system's means" >&2; exit 1; }
[ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || { echo "browser: chromium is missing; $hint" >&2; exit 1; }
echo "[browser] installing the Debian package chromium"
{
    "${as_root[@]}" apt-get update -qq &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
            apt-get install -y -qq --no-install-recommends chromium
} >/dev/null || { echo "browser: apt-get failed; $hint" >&2; exit 1; }
