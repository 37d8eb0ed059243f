#!/bin/sh
# Runs the tests that need Debian packages, after installing those that are missing. `--all`: every tier instead.
set -eu
: "${PYTHON:=.venv/bin/python}"
packages="redis-server"
# The crash test compiles what makes a server's disk forget.
command -v cc >/dev/null || packages="$packages gcc libc6-dev"
missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" -eq 0 ]; then run=""; else run="sudo"; fi
    echo "installing:$missing"
    $run env DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null
    # The package would start a server of its own; the tests start theirs.
    # shellcheck disable=SC2086
    $run env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -q -y --no-install-recommends $missing >/dev/null
fi
if [ "${1:-}" = "--all" ]; then
    shift
    exec "$PYTHON" -m pytest "$@"
fi
exec "$PYTHON" -m pytest -m "system and not full" "$@"
