#!/bin/sh
# Builds the image of a host (a small Debian that boots systemd) and prints its name on stdout.
# usage: host_image.sh [SUITE]      SUITE: trixie (default) or bookworm
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh
suite=${1:-trixie}
mirror=${POOLKIT_DEBIAN_MIRROR:-http://deb.debian.org/debian}

recipe=$(cat scripts/host.Dockerfile | sha256sum | cut -c1-12)
image=poolkit-host:$suite-$recipe
if docker image inspect "$image" >/dev/null 2>&1; then echo "$image"; exit 0; fi

base=poolkit-base:$suite
if ! docker image inspect "$base" >/dev/null 2>&1; then
    if timeout 60 docker pull -q "debian:$suite-slim" >/dev/null 2>&1; then
        docker tag "debian:$suite-slim" "$base"
    else
        say "No image registry answers: making the base of Debian $suite with debootstrap (about two minutes, once)"
        [ -x /usr/sbin/debootstrap ] && [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
            apt_install debootstrap debian-archive-keyring
        root=$(as_root mktemp -d /var/tmp/poolkit-base.XXXXXX)
        trap 'as_root rm -rf "$root"' EXIT
        trap 'exit 130' INT TERM
        as_root /usr/sbin/debootstrap --variant=minbase "$suite" "$root" "$mirror" >&2 ||
            fail "debootstrap could not make Debian $suite from $mirror: set POOLKIT_DEBIAN_MIRROR to a mirror that this machine reaches"
        as_root tar -C "$root" --one-file-system -c . | docker import - "$base" >/dev/null
    fi
fi

say "Building the host image $image (about a minute, once)"
docker build --build-arg "base=$base" --build-arg "suite=$suite" --build-arg "mirror=$mirror" \
    --tag "$image" - < scripts/host.Dockerfile >&2 ||
    fail "docker build could not make $image: its message is above"
echo "$image"
