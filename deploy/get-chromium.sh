#!/bin/sh
# Unpack Debian's chromium, and of what it needs that which this machine lacks, into the folder
# named as the first argument: for the console's tests. Nothing is installed, so no root is needed.
set -u
into=$1
skip() {
    echo "$1: the console's browser tests are skipped" >&2
    exit 0
}
command -v apt-get >/dev/null || skip "no apt-get here (put a chromium on the PATH)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
lacking() {
    apt-get install --simulate --no-install-recommends chromium 2>/dev/null | awk '/^Inst/ {print $2}'
}
fetch() {
    names=$(lacking) && [ -n "$names" ] &&
        # shellcheck disable=SC2086 # one word for each package
        apt-get download --quiet $names >/dev/null 2>&1
}
fetch || { apt-get update --quiet >/dev/null 2>&1; fetch; } ||
    skip "the package chromium can't be fetched"
cd - >/dev/null || exit 1
mkdir -p "$into.new"
for package in "$work"/*.deb; do
    dpkg -x "$package" "$into.new" || skip "$package can't be unpacked"
done
rm -rf "$into"
mv "$into.new" "$into"
