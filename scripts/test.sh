#!/bin/sh
# Runs everything: make check, then Molecule on hosts of its own, which are removed at the end.
# usage: test.sh [SCENARIO …]     default: every scenario of molecule/
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh
start=$(date +%s)

scripts/stage.sh 1/5 "Python environment" scripts/venv.sh
export PATH="$PWD/.venv/bin:$PATH"
scripts/stage.sh 2/5 "make check" scripts/check.sh
scripts/stage.sh 3/5 "Docker engine" scripts/engine.sh
scripts/stage.sh 4/5 "Host images" sh -c 'scripts/host_image.sh trixie && scripts/host_image.sh bookworm'

[ $# -gt 0 ] || set -- $(cd molecule && for file in */molecule.yml; do dirname "$file"; done | grep -v '^default$')
mkdir -p .cache/molecule
rm -f .cache/molecule/*
remove_hosts() { molecule destroy --scenario-name default >/dev/null 2>&1 || true; }
trap remove_hosts EXIT
trap 'exit 130' INT TERM
remove_hosts  # of an interrupted run: the test begins from zero
for scenario in "$@"; do
    scripts/stage.sh 5/5 "Molecule scenario $scenario" scripts/scenario.sh "$scenario"
done
python scripts/test_summary.py .cache/check.xml .cache/molecule/*.xml
say "make test: done in $(($(date +%s) - start)) s"
