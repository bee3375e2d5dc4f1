# Sourced by the set-up scripts: messages, and root where a step needs it.
say() { printf '%s\n' "$*" >&2; }
fail() { printf '\nERROR: %s\n' "$*" >&2; exit 1; }
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else fail "'$*' needs root: run it as root, or install sudo, then run the same command again"
    fi
}
apt_install() {
    command -v apt-get >/dev/null ||
        fail "$* is missing and this is not a Debian or Ubuntu machine: install it, then run the same command again"
    say "Installing from the distribution: $*"
    as_root env DEBIAN_FRONTEND=noninteractive sh -c \
        'apt-get update -q && apt-get install -y -q --no-install-recommends "$@"' sh "$@" >&2 ||
        fail "apt-get could not install $*: its message is above"
}
