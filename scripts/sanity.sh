#!/bin/sh
# Runs `ansible-test sanity` on the collection as it is installed. ansible-test makes environments of its own in
# ~/.ansible/test with pip, from ci-files.testing.ansible.com and the package index: no part of make check.
# usage: sanity.sh [OPTION …]     options of `ansible-test sanity`, such as --test validate-modules
set -eu
cd "$(dirname "$0")/.."
root=$PWD
export PATH="$root/.venv/bin:$PATH" LC_ALL=C.UTF-8
unset ANSIBLE_CONFIG
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cd "$folder"
ansible-galaxy collection build "$root" --output-path "$folder" >/dev/null
ansible-galaxy collection install --offline --no-deps -p "$folder" "$folder"/*.tar.gz >/dev/null 2>&1
cd "$folder"/ansible_collections/*/*
# It follows no links to directories.
rm plugins playbooks
mv ansible/plugins ansible/playbooks .
rmdir ansible

mkdir -p tests/sanity
printf 'modules:\n  python_requires: ">=3.9"\n' > tests/config.yml
{
    # The license is MIT.
    for file in plugins/modules/*.py plugins/lookup/*.py; do
        echo "$file validate-modules:missing-gplv3-license"
    done
    # The program that systemd-run starts is part of the module, as text.
    echo "plugins/modules/app_migration.py validate-modules:use-run-command-not-popen"
    echo "plugins/modules/app_migration.py validate-modules:use-fail-json-not-sys-exit"
    # This one runs on the controller alone, whose Python is 3.11 or later.
    echo "plugins/modules/source_archive.py import-3.9"
    echo "plugins/modules/source_archive.py import-3.10"
    # Programs for the hosts.
    for file in roles/*/files/*.py; do
        echo "$file shebang"
    done
} > "tests/sanity/ignore-$(ansible --version | sed -n '1s/.*core \([0-9]*\.[0-9]*\).*/\1/p').txt"
# pylint would want other names than `_` and a `check` in every subprocess.run; ruff checks the code.
ansible-test sanity --python "$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" --skip-test pylint "$@"
