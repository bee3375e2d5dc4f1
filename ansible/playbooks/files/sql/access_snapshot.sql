SELECT md5(string_agg(acl, ' ' ORDER BY acl)) AS access FROM (
    SELECT 'database ' || datname || ' ' || coalesce(datacl::text, '') AS acl
    FROM pg_catalog.pg_database WHERE datname = current_database()
    UNION ALL
    SELECT 'schema ' || coalesce(nspacl::text, '') FROM pg_catalog.pg_namespace WHERE nspname = 'public'
    UNION ALL
    SELECT 'relation ' || relname || ' ' || coalesce(relacl::text, '')
    FROM pg_catalog.pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'default ' || defaclrole || defaclobjtype::text || ' ' || defaclacl::text
    FROM pg_catalog.pg_default_acl
) AS every_acl
