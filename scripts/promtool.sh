#!/bin/sh
# Prints the path of promtool; prometheus lies beside it. Takes the distribution's package into .cache if there is none on PATH:
# needs no root, and starts no service.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh
if command -v promtool >/dev/null && command -v prometheus >/dev/null; then command -v promtool; exit 0; fi
home=$PWD/.cache/prometheus
if [ ! -x "$home/usr/bin/promtool" ]; then
    command -v apt-get >/dev/null ||
        fail "promtool is missing and this is not a Debian or Ubuntu machine: install Prometheus, then run the same command again"
    mkdir -p .cache
    new=$(mktemp -d "$home.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    say "Downloading the distribution's package prometheus"
    download() {  # promtool is a package of its own in Debian 13, and not there in Debian 12
        packages=prometheus
        apt-cache "$@" show promtool >/dev/null 2>&1 && packages="prometheus promtool"
        # shellcheck disable=SC2086
        (cd "$new" && apt-get "$@" download -q $packages) >>"$new/apt.log" 2>&1
    }
    # The machine's lists of packages may be old, or not there; lists in the cache need no root.
    lists="-o Dir::State::Lists=$new/lists -o Dir::Cache=$new/cache"
    mkdir -p "$new/lists/partial" "$new/cache/archives/partial"
    # shellcheck disable=SC2086
    download || { apt-get $lists update -q >>"$new/apt.log" 2>&1 && download $lists; } || {
        cat "$new/apt.log" >&2
        fail "apt-get could not download prometheus: its message is above"; }
    for package in "$new"/*.deb; do dpkg-deb -x "$package" "$new/root"; done
    mv -T "$new/root" "$home" 2>/dev/null || [ -x "$home/usr/bin/promtool" ]  # another run was first
fi
echo "$home/usr/bin/promtool"
