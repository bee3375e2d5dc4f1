-- The server's databases. The administrator need not be let in: one that was left for another server takes no logins.
SELECT datname, pg_get_userbyid(datdba) AS owner, pg_encoding_to_char(encoding) AS encoding, datcollate AS collation, datconnlimit AS connection_limit,
       coalesce(shobj_description(oid, 'pg_database'), '') AS description,
       coalesce(substring(shobj_description(oid, 'pg_database') FROM '\[poolkit: moved to ([^]]*)\]'), '') AS moved_to
FROM pg_catalog.pg_database
