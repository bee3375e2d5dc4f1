#!/bin/sh
# Runs one Molecule scenario; its hosts stay for the next. The full output goes to a file at -vvv, where
# a test looks for secrets; the screen shows the tasks and the tests' results as they come, and the rehearsals' table.
# usage: scenario.sh NAME
set -u
cd "$(dirname "$0")/.."
log=.cache/molecule/$1.log
tests=.cache/molecule/$1.tests.log
mkdir -p .cache/molecule
: > "$log"; : > "$tests"
export POOLKIT_VERBOSITY=-vvv

# `molecule test` would remove the hosts at its end, and prepare them for the first scenario only. The steps are its own.
steps=$(cat "molecule/$1/molecule.yml" .config/molecule/config.yml | sed -n 's/^ *test_sequence: \[\(.*\)\]$/\1/p' | head -n 1 | tr -d ,)
for step in $steps; do
    [ "$step" = prepare ] && force=--force || force=
    molecule "$step" $force --scenario-name "$1" || exit
done > "$log" 2>&1 &
molecule=$!
# A background job does not hear Ctrl-C by itself.
trap 'kill $molecule 2>/dev/null; exit 130' INT TERM
tail -q -n +1 -F --pid=$molecule "$log" "$tests" 2>/dev/null |
    grep --line-buffered -aE 'TASK \[|fatal:|: ok=|PASSED|FAILED|ERROR at|Executed:|longest pause| [0-9.]+ s +[0-9]+ +[0-9]+ *$' || true
wait $molecule
code=$?
tail -n 3 "$tests"
[ $code -eq 0 ] || tail -n 60 "$tests" "$log" | cut -c1-2000
exit $code
