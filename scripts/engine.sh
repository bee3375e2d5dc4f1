#!/bin/sh
# Makes sure that a Docker engine answers and that no other machine can reach poolkit's networks.
# Installs the distribution's docker.io only where no engine is installed, and starts it.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

answers() { docker info >/dev/null 2>&1; }

# A machine without an init system keeps pid files of processes that are gone, and their numbers
# may belong to others by now: the engine would then wait for a containerd that never comes.
forget_stale_pid() {
    pid=$(cat "$1" 2>/dev/null) || return 0
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || as_root rm -f "$1"
}

start_engine() {
    if [ -d /run/systemd/system ]; then
        as_root systemctl start docker
    else
        forget_stale_pid /var/run/docker.pid dockerd
        forget_stale_pid /var/run/docker/containerd/containerd.pid containerd
        say "Starting the Docker engine (no init system here; log: /var/log/dockerd.log)"
        as_root sh -c 'nohup setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &'
    fi
}

grant_socket() {
    say "Giving $(id -un) access to the Docker engine's socket until the engine restarts"
    as_root chown "$(id -un)" /var/run/docker.sock
}

if ! answers; then
    command -v dockerd >/dev/null || [ -x /usr/sbin/dockerd ] || apt_install docker.io
    { [ -S /var/run/docker.sock ] && as_root docker info >/dev/null 2>&1; } || start_engine
    tries=0
    until as_root docker info >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -le 60 ] || fail "the Docker engine did not answer within 60 s: $(tail -n 5 /var/log/dockerd.log 2>/dev/null || echo 'see journalctl -u docker')"
        sleep 1
    done
    answers || grant_socket
    answers || fail "the Docker engine runs but does not answer $(id -un): check DOCKER_HOST and the rights on /var/run/docker.sock"
fi

# Engines before 28 forward packets of other machines to published container ports when these
# machines route to the bridge. The hosts' bridges all begin with "poolkit".
version=$(docker version --format '{{.Server.Version}}')
if [ "${version%%.*}" -lt 28 ]; then
    guard="DOCKER-USER -o poolkit+ ! -i poolkit+ -m conntrack --ctstate NEW -j DROP"
    # shellcheck disable=SC2086
    (as_root iptables -C $guard) 2>/dev/null || (as_root iptables -I $guard) ||
        fail "Docker $version needs a packet filter rule so that other machines cannot reach the local hosts: run 'sudo iptables -I $guard', then the same command again"
fi
