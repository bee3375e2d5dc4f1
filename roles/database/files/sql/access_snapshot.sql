SELECT (
    SELECT md5(string_agg(acl, ' ' ORDER BY acl)) FROM (
        SELECT 'database ' || datname || ' ' || coalesce(datacl::text, '') AS acl
        FROM pg_catalog.pg_database WHERE datname = current_database()
        UNION ALL
        SELECT 'schema ' || nspname || ' ' || nspowner || ' ' || coalesce(nspacl::text, '')
        FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
        UNION ALL
        SELECT 'relation ' || nspname || '.' || relname || ' ' || coalesce(relacl::text, '')
        FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
        UNION ALL
        SELECT 'default ' || defaclrole || ' ' || defaclnamespace || defaclobjtype::text || ' ' || defaclacl::text
        FROM pg_catalog.pg_default_acl
        UNION ALL
        SELECT 'setting ' || setrole || ' ' || setconfig::text FROM pg_catalog.pg_db_role_setting
        JOIN pg_catalog.pg_database ON pg_database.oid = setdatabase WHERE datname = current_database()
        UNION ALL
        SELECT 'limit ' || rolname || ' ' || rolconnlimit FROM pg_catalog.pg_roles
        UNION ALL
        SELECT 'lookup ' || pg_get_functiondef(oid) || coalesce(proacl::text, '') FROM pg_catalog.pg_proc
        WHERE pronamespace = to_regnamespace('poolkit') AND proname = 'pooler_login'
    ) AS every_acl
) AS access, (
    SELECT coalesce(json_object_agg(pg_get_userbyid(setrole), setconfig), '{}')::text
    FROM pg_catalog.pg_db_role_setting JOIN pg_catalog.pg_database ON pg_database.oid = setdatabase
    WHERE datname = current_database()
) AS settings, (
    SELECT coalesce(json_agg(rolname ORDER BY rolname), '[]')::text FROM pg_catalog.pg_roles
    WHERE rolcanlogin AND NOT rolsuper AND has_database_privilege(oid, current_database(), 'CONNECT')
) AS connectors, (
    SELECT coalesce(json_agg(format('%s.%s (%s)', nspname, relname, pg_get_userbyid(relowner)) ORDER BY nspname, relname), '[]')::text
    FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND nspname !~ '^pg_' AND nspname <> 'information_schema'
      AND relowner <> (SELECT datdba FROM pg_catalog.pg_database WHERE datname = current_database())
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend
                      WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
) AS strangers, has_schema_privilege('public', 'public', 'CREATE') AS everybody_may_create
