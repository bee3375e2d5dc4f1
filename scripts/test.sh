#!/bin/sh
# Runs linters and all unit tests, then Molecule on hosts of its own, which are removed at the end.
# usage: test.sh [SCENARIO …]     default: every scenario of molecule/ but five that take long: rollout,
#                                 ecs, runbooks, newcomer and drivers; all: these as well, as CI does (.ci/run)
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh
start=$(date +%s)

scripts/stage.sh 1/6 "Python environment" scripts/venv.sh
export PATH="$PWD/.venv/bin:$PATH"
# Images take the network, and unit tests the processors: at once.
mkdir -p .cache
rm -f .cache/images_made
{
    scripts/stage.sh 3/6 "Docker engine" scripts/engine.sh &&
    scripts/stage.sh 4/6 "Host images" sh -c 'scripts/host_image.sh trixie && scripts/host_image.sh bookworm' &&
    touch .cache/images_made
} 2>&1 | sed -u 's/^/beside | /' &
images=$!
trap 'kill $images 2>/dev/null || true' EXIT
scripts/stage.sh 2/6 "Linters and unit tests" scripts/check.sh all
wait $images
[ -e .cache/images_made ] || fail "the hosts' images could not be made: the reason is above"

[ "$*" = all ] && left_out=default || left_out='default|drivers|ecs|newcomer|rollout|runbooks'
case "$*" in
    ''|all) set -- $(cd molecule && for file in */molecule.yml; do dirname "$file"; done | grep -vxE "$left_out") ;;
esac
mkdir -p .cache/molecule
rm -f .cache/molecule/*
# Two lanes at once, one for each of two processors, each with pooler hosts of its own. The scenarios that take
# long come first, so that both lanes end at about the same time.
second='POOLKIT_LANE=2 ansible-playbook -i molecule/poolers ansible/playbooks'
remove_hosts() {
    sh -c "$second/docker_down.yml" >/dev/null 2>&1 || true  # all but the network, which the others still use
    molecule destroy --scenario-name default >/dev/null 2>&1 || true
}
trap remove_hosts EXIT
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
remove_hosts  # of an interrupted run: the test begins from zero
create='molecule create --scenario-name default'
[ $# -eq 1 ] || create="$create && $second/docker_up.yml"
scripts/stage.sh 5/6 "Hosts" sh -c \
    "{ $create; } > .cache/molecule/create.log 2>&1 || { tail -n 40 .cache/molecule/create.log; exit 1; }"

queue=.cache/molecule/queue
long='rollout stack ecs runbooks transaction newcomer tls invalid_input peers drivers auth_query'
for scenario in $long; do printf '%s\n' "$@" | grep -x "$scenario" || true; done > $queue
printf '%s\n' "$@" | grep -vxF "$(cat $queue)" >> $queue || true
next() { flock $queue.lock sh -c "sed -n 1p $queue; sed -i 1d $queue"; }
lane() {
    export POOLKIT_LANE="$1"
    while scenario=$(next) && [ -n "$scenario" ]; do
        scripts/stage.sh 6/6 "Molecule scenario $scenario" scripts/scenario.sh "$scenario" ||
            { echo "$scenario" >> $queue.failed; return; }
    done
}
beside=
if [ $# -gt 1 ]; then  # one scenario needs one lane, and there are no hosts for a second
    lane 2 2>&1 | sed -u 's/^/beside | /' &
    beside=$!
fi
lane 1
[ -z "$beside" ] || wait $beside
if [ -e $queue.failed ]; then  # again, where somebody looks who has the end of the output alone
    for scenario in $(cat $queue.failed); do
        printf '\n== What failed in the scenario %s\n' "$scenario"
        (cd .cache/molecule && grep -haE '^(E  |FAILED|ERROR)|fatal: ' "$scenario.tests.log" "$scenario.log") | cut -c1-400 | tail -n 40
    done
    fail "$(paste -sd ' ' $queue.failed) failed: more is above, and in .cache/molecule"
fi
python scripts/test_summary.py .cache/check.xml .cache/molecule/*.xml
say "make test: done in $(($(date +%s) - start)) s"
