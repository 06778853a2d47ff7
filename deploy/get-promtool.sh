#!/bin/sh
# Unpack Debian's prometheus package (for promtool) into the folder named as the first argument.
set -u
into=$1
if ! command -v apt-get >/dev/null; then
    echo "no apt-get here: install promtool yourself, or its tests are skipped" >&2
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
apt-get download --quiet prometheus >/dev/null 2>&1 ||
    { apt-get update --quiet >/dev/null 2>&1; apt-get download --quiet prometheus >/dev/null; } ||
    { echo "the package prometheus can't be fetched: promtool's tests are skipped" >&2; exit 0; }
cd - >/dev/null || exit 1
mkdir -p "$into"
dpkg -x "$work"/prometheus_*.deb "$into"
