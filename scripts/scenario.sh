#!/bin/sh
# Runs one Molecule scenario; its hosts stay for the next. The full output goes to a file at -vvv, where
# a test looks for secrets; the screen shows the tasks and the tests' results as they come.
# usage: scenario.sh NAME
set -u
cd "$(dirname "$0")/.."
log=.cache/molecule/$1.log
tests=.cache/molecule/$1.tests.log
mkdir -p .cache/molecule
: > "$log"; : > "$tests"
export POOLKIT_VERBOSITY=-vvv

# `molecule test` would remove the hosts at its end, and prepare them for the first scenario only.
{
    molecule create --scenario-name "$1" && molecule prepare --force --scenario-name "$1" &&
    molecule check --scenario-name "$1" &&
    molecule converge --scenario-name "$1" && molecule idempotence --scenario-name "$1" &&
    molecule verify --scenario-name "$1"
} > "$log" 2>&1 &
molecule=$!
# A background job does not hear Ctrl-C by itself.
trap 'kill $molecule 2>/dev/null; exit 130' INT TERM
tail -q -n +1 -F --pid=$molecule "$log" "$tests" 2>/dev/null |
    grep --line-buffered -aE 'TASK \[|fatal:|: ok=|PASSED|FAILED|ERROR at|Executed:' || true
wait $molecule
code=$?
tail -n 3 "$tests"
[ $code -eq 0 ] || tail -n 60 "$tests" "$log" | cut -c1-2000
exit $code
