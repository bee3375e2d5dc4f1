#!/bin/sh
# Prints the command of Docker Compose, and installs it from the distribution if it is not there.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh
if docker compose version >/dev/null 2>&1; then echo docker compose; exit 0; fi
command -v docker-compose >/dev/null || apt_install docker-compose
echo docker-compose
