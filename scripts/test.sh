#!/bin/sh
# Runs make check, then Molecule on hosts of its own, which are removed at the end.
# usage: test.sh [SCENARIO …]     default: every scenario of molecule/ but three that take long, which
#                                 CI runs as well (.ci/run): rollout, newcomer and drivers
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh
start=$(date +%s)

scripts/stage.sh 1/6 "Python environment" scripts/venv.sh
export PATH="$PWD/.venv/bin:$PATH"
scripts/stage.sh 2/6 "make check" scripts/check.sh
scripts/stage.sh 3/6 "Docker engine" scripts/engine.sh
scripts/stage.sh 4/6 "Host images" sh -c 'scripts/host_image.sh trixie && scripts/host_image.sh bookworm'

[ $# -gt 0 ] || set -- $(cd molecule && for file in */molecule.yml; do dirname "$file"; done | grep -vxE 'default|drivers|newcomer|rollout')
mkdir -p .cache/molecule
rm -f .cache/molecule/*
remove_hosts() { molecule destroy --scenario-name default >/dev/null 2>&1 || true; }
trap remove_hosts EXIT
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
remove_hosts  # of an interrupted run: the test begins from zero
scripts/stage.sh 5/6 "Hosts" sh -c \
    'molecule create --scenario-name default > .cache/molecule/create.log 2>&1 || { tail -n 40 .cache/molecule/create.log; exit 1; }'

run() {
    for scenario in "$@"; do
        scripts/stage.sh 6/6 "Molecule scenario $scenario" scripts/scenario.sh "$scenario" || return 1
    done
}
# These have hosts of their own and run beside the others, which share theirs.
own=$(printf '%s\n' "$@" | grep -xE 'stack|rollout|newcomer') || true
shared=$(printf '%s\n' "$@" | grep -vxE 'stack|rollout|newcomer') || true
if [ -n "$own" ] && [ -n "$shared" ]; then
    { code=0; run $own || code=1; echo $code > .cache/molecule/own.code; } 2>&1 | sed -u 's/^/beside | /' &
    run $shared || failed=1
    wait
    [ "$(cat .cache/molecule/own.code)" = 0 ] || failed=1
else
    run "$@" || failed=1
fi
[ -z "${failed:-}" ] || fail "a scenario failed: its last lines are above, its log is in .cache/molecule"
python scripts/test_summary.py .cache/check.xml .cache/molecule/*.xml
say "make test: done in $(($(date +%s) - start)) s"
