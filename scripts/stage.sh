#!/bin/sh
# Runs one stage of a target with a heading and its duration; says what to do when it fails.
# usage: stage.sh NUMBER TITLE COMMAND [ARGUMENT …]
set -u
number=$1 title=$2
shift 2
printf '\n== [%s] %s\n' "$number" "$title"
start=$(date +%s)
"$@"
code=$?
if [ $code -ne 0 ]; then
    printf '\n== [%s] %s FAILED (exit code %s): the message above says why.\n   Correct it and run the same command again: it goes on where it stopped.\n' \
        "$number" "$title" "$code" >&2
    exit $code
fi
printf '== [%s] %s: done in %s s\n' "$number" "$title" "$(($(date +%s) - start))"
