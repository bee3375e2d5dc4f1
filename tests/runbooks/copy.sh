#!/bin/sh
# Copies the application's database as docs/runbooks/move_database.md shows it, in the container of PostgreSQL 17, whose
# programs know both versions; this machine has none.
# usage: copy.sh OLD NEW     PGPASSWORD: the administrator's
set -eu
exec docker exec -e PGPASSWORD -e OLD="$1" -e NEW="$2" poolkit-test-db6 timeout 20 bash -euo pipefail -c '
    pg_dump --clean --if-exists --host="$OLD" --username=poolkit_admin django |
        sed "/^SET transaction_timeout/d" |
        psql --quiet --set=ON_ERROR_STOP=1 --single-transaction --host="$NEW" --username=poolkit_admin django
    vacuumdb --analyze-only --quiet --host="$NEW" --username=poolkit_admin django'
