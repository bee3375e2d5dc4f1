#!/bin/sh
# Linters, syntax, templates and unit tests: needs no hosts and no engine.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg"
mkdir -p .cache

echo "ruff";           ruff check --quiet .
                       ruff format --quiet --check .
echo "yamllint";       yamllint --strict .
echo "syntax";         ansible-playbook --syntax-check site.yml ansible/playbooks/*.yml >/dev/null
echo "ansible-lint";   ansible-lint --offline --profile production -q
echo "unit tests";     python -m pytest -q --junitxml=.cache/check.xml
