-- Asked by `pgtenant check --connect` as the role itself: version, clock, superuser, BYPASSRLS, interface installed,
-- interface usable, a table with policies that the role could own, where it may create objects, settings of its own,
-- whether parameters of statements are logged, which plain settings policies read, which settings are bound with a
-- context as far as the database was told, by what the role could change any setting unseen. Runs on PostgreSQL 14 to 18.
SELECT pg_catalog.current_setting('server_version_num'),
       pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())::pg_catalog.int8,
       r.rolsuper,
       r.rolbypassrls,
       i.oid IS NOT NULL,
       COALESCE(pg_catalog.has_schema_privilege(i.pronamespace, 'USAGE')
                AND pg_catalog.has_function_privilege(i.oid, 'EXECUTE'), false),
       COALESCE((SELECT c.oid::pg_catalog.regclass::pg_catalog.text
                 FROM pg_catalog.pg_class c
                 WHERE c.relrowsecurity AND pg_catalog.pg_has_role(r.oid, c.relowner, 'MEMBER')
                 ORDER BY 1 LIMIT 1), ''),
       COALESCE((SELECT 'SCHEMA ' || pg_catalog.quote_ident(n.nspname)
                 FROM pg_catalog.pg_namespace n
                 WHERE pg_catalog.has_schema_privilege(r.oid, n.oid, 'CREATE') AND n.nspname !~ '^pg_(toast_)?temp_'
                 ORDER BY 1 LIMIT 1),
                CASE WHEN pg_catalog.has_database_privilege(r.oid, pg_catalog.current_database(), 'CREATE')
                     THEN 'DATABASE ' || pg_catalog.quote_ident(pg_catalog.current_database()) END, ''),
       COALESCE((SELECT pg_catalog.string_agg(pg_catalog.split_part(setting, '=', 1), ', ' ORDER BY setting)
                 FROM pg_catalog.pg_db_role_setting s
                 JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
                 CROSS JOIN pg_catalog.unnest(s.setconfig) AS setting
                 WHERE s.setrole = r.oid AND s.setdatabase IN (0, d.oid)
                   AND pg_catalog.split_part(setting, '=', 1) <> 'log_parameter_max_length'), ''),
       pg_catalog.current_setting('log_parameter_max_length') <> '0'
           AND (pg_catalog.current_setting('log_statement') = 'all'
                OR pg_catalog.current_setting('log_min_duration_statement') <> '-1'
                OR pg_catalog.current_setting('log_min_duration_sample') <> '-1'
                OR pg_catalog.current_setting('log_transaction_sample_rate') <> '0'),
       COALESCE((SELECT pg_catalog.string_agg(DISTINCT pg_catalog.lower(found.names[1] COLLATE "C"), ',')
                 FROM (SELECT COALESCE(pg_catalog.pg_get_expr(polqual, polrelid), '') || ' '
                              || COALESCE(pg_catalog.pg_get_expr(polwithcheck, polrelid), '')
                       FROM pg_catalog.pg_policy
                       UNION ALL
                       SELECT pg_catalog.pg_get_functiondef(f.oid)
                       FROM pg_catalog.pg_proc f
                       WHERE f.prokind = 'f' AND f.pronamespace NOT IN ('pg_catalog'::pg_catalog.regnamespace, i.pronamespace)
                         AND f.oid IN (SELECT d.refobjid FROM pg_catalog.pg_depend d
                                       WHERE d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass
                                         AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass)
                      ) AS texts (text)
                 CROSS JOIN LATERAL pg_catalog.regexp_matches(
                     texts.text, 'current_setting\s*\(\s*''([^'']+)''', 'gi') AS found (names)
                 WHERE found.names[1] !~* '^pgtenant[.]'), ''),
       pg_catalog.concat_ws(', ',
           CASE WHEN pg_catalog.has_function_privilege('pg_catalog.set_config(text, text, boolean)', 'EXECUTE')
                THEN 'EXECUTE on set_config' END,
           CASE WHEN pg_catalog.has_any_column_privilege('pg_catalog.pg_settings', 'UPDATE')
                THEN 'UPDATE on pg_settings' END,
           (SELECT pg_catalog.string_agg('USAGE on language ' || l.lanname, ', ' ORDER BY l.lanname)
            FROM pg_catalog.pg_language l
            WHERE l.lanname NOT IN ('internal', 'c', 'sql') AND pg_catalog.has_language_privilege(l.oid, 'USAGE')),
           CASE WHEN pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')
                THEN 'TEMPORARY on the database' END)
FROM pg_catalog.pg_roles r
LEFT JOIN (pg_catalog.pg_proc i
           JOIN pg_catalog.pg_namespace n
             ON n.oid = i.pronamespace AND n.nspname = 'pgtenant' AND i.proname = 'organization_id' AND i.pronargs = 0)
       ON true
WHERE r.rolname = CURRENT_USER
