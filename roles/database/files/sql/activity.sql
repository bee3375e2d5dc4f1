SELECT json_build_object(
    'error', '',
    'backends', (SELECT coalesce(json_agg(row_to_json(backend)), '[]') FROM (
        SELECT pid, usename, datname, application_name, coalesce(state, 'hidden') AS state,
               coalesce(extract(epoch FROM now() - xact_start)::int, 0) AS transaction_seconds,
               coalesce(extract(epoch FROM now() - state_change)::int, 0) AS state_seconds,
               CASE WHEN state IS NULL THEN '' ELSE upper(substring(query FROM '^\s*(\w+)')) END AS command,
               pg_blocking_pids(pid) AS blocked_by
        FROM pg_catalog.pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
    ) AS backend),
    'hidden', (SELECT count(*) FROM pg_catalog.pg_stat_activity
               WHERE query = '<insufficient privilege>' AND usename IS NOT NULL AND backend_type = 'client backend'),
    'max_connections', current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
    'limits', (SELECT coalesce(json_object_agg(rolname, rolconnlimit), '{}') FROM pg_catalog.pg_roles WHERE rolconnlimit > 0),
    'read_only', pg_is_in_recovery(),
    'prepared', (SELECT coalesce(json_agg(row_to_json(left_over)), '[]') FROM (
        SELECT gid, owner, database, extract(epoch FROM now() - prepared)::int AS seconds
        FROM pg_catalog.pg_prepared_xacts WHERE prepared < now() - interval '1 minute'
    ) AS left_over)
)::text AS activity
