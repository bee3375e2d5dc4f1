#!/bin/sh
# Makes .venv hold exactly what requirements.lock lists; does nothing when it already does.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh
python=${PYTHON:-python3}

# Some ways to copy a repository (a zip archive, git with core.symlinks=false) leave text files in place of its links.
for link in plugins playbooks .collections/ansible_collections/*/*/*; do
    target=$(head -n 1 "$link" 2>/dev/null | cut -c1-100)
    [ -L "$link" ] || [ ! -f "$link" ] || [ ! -e "$(dirname "$link")/$target" ] || ln -sfn "$target" "$link"
done

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' ||
    fail "poolkit needs Python 3.11, 3.12 or 3.13 and $python is $("$python" -V 2>&1): set PYTHON=/path/to/python3"
wanted=$({ "$python" -VV; cat requirements.lock; } | sha256sum | cut -d' ' -f1)
[ "$(cat .venv/.requirements 2>/dev/null)" = "$wanted" ] && exit 0

"$python" -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
say "Building .venv from requirements.lock (about a minute, once)"
"$python" -m venv --clear .venv
.venv/bin/pip install --disable-pip-version-check --no-compile --require-hashes -r requirements.lock >&2 ||
    fail "pip could not install requirements.lock: behind a proxy or with an own package index, configure pip (pip.conf or PIP_INDEX_URL, PIP_CERT), then run the same command again"
echo "$wanted" > .venv/.requirements
