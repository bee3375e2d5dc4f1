#!/bin/sh
# Linters, syntax, templates and unit tests: needs no hosts and no engine.
# usage: check.sh [all]     all: also the unit tests that run whole playbooks, which take longer than the others
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg"
mkdir -p .cache

echo "ruff";           ruff check --quiet .
                       ruff format --quiet --check .
echo "yamllint";       yamllint --strict .
echo "syntax";         ansible-playbook --syntax-check site.yml ansible/playbooks/*.yml >/dev/null
# The two long ones at once, one for each of two processors.
echo "ansible-lint and unit tests"
ansible-lint --offline --profile production -q > .cache/ansible-lint.log 2>&1 &
lint=$!
trap 'kill $lint 2>/dev/null' EXIT
[ "${1:-}" = all ] && tests= || tests='not playbooks'
python -m pytest -q -n 2 --dist loadfile -m "$tests" --junitxml=.cache/check.xml
wait $lint || { cat .cache/ansible-lint.log; exit 1; }
trap - EXIT
