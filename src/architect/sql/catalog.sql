-- What there is, as one document: tables with their columns, constraints, indexes, triggers and grants; views; functions
-- that run with their owner's rights. What belongs to an extension, and pgtenant's own, is left out.
WITH ours AS (
    SELECT n.oid, n.nspname FROM pg_namespace AS n
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgtenant') AND n.nspname !~ '^pg_(toast|temp)'
), relations AS (
    SELECT c.*, o.nspname FROM pg_class AS c JOIN ours AS o ON o.oid = c.relnamespace
    WHERE c.relpersistence <> 't' AND NOT EXISTS (
        SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
), parts (whole, part) AS (
    SELECT c.oid, CASE WHEN c.relkind = 'p' THEN p.relid ELSE c.oid END
    FROM relations AS c LEFT JOIN LATERAL pg_partition_tree(c.oid) AS p ON c.relkind = 'p' WHERE c.relkind IN ('r', 'p')
), named (oid, schema, name) AS (
    SELECT c.oid, n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
)
SELECT jsonb_build_object(
'version', current_setting('server_version_num')::int / 10000,
'database', current_database(),
'tables', (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'schema', c.nspname, 'name', c.relname,
        'is_partitioned', c.relkind = 'p',
        'is_partition', c.relispartition,
        'owner', pg_get_userbyid(c.relowner),
        'comment', obj_description(c.oid, 'pg_class'),
        'rows', (SELECT coalesce(sum(CASE WHEN l.reltuples >= 0 THEN l.reltuples ELSE coalesce(s.n_live_tup, 0) END), 0)::bigint
            FROM parts AS p JOIN pg_class AS l ON l.oid = p.part LEFT JOIN pg_stat_user_tables AS s ON s.relid = l.oid
            WHERE p.whole = c.oid),
        'bytes', (SELECT coalesce(sum(pg_total_relation_size(p.part)), 0)::bigint FROM parts AS p WHERE p.whole = c.oid),
        'writes', coalesce((SELECT s.n_tup_ins + s.n_tup_upd + s.n_tup_del FROM pg_stat_user_tables AS s WHERE s.relid = c.oid), 0),
        'has_policies', c.relrowsecurity,
        'is_forced', c.relforcerowsecurity,
        'policies', (SELECT coalesce(jsonb_agg(jsonb_build_object('name', p.polname, 'is_permissive', p.polpermissive) ORDER BY p.polname), '[]')
            FROM pg_policy AS p WHERE p.polrelid = c.oid),
        'public_rights', (SELECT coalesce(jsonb_agg(DISTINCT g.privilege_type), '[]') FROM aclexplode(c.relacl) AS g WHERE g.grantee = 0),
        'parents', (SELECT coalesce(jsonb_agg(jsonb_build_object('schema', p.schema, 'name', p.name) ORDER BY i.inhseqno), '[]')
            FROM pg_inherits AS i JOIN named AS p ON p.oid = i.inhparent WHERE i.inhrelid = c.oid),
        'columns', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                'name', a.attname,
                'type', format_type(a.atttypid, a.atttypmod),
                'is_not_null', a.attnotnull,
                'is_generated', a.attgenerated <> '',
                'is_identity', a.attidentity <> '',
                'default', pg_get_expr(d.adbin, d.adrelid)) ORDER BY a.attnum), '[]')
            FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
        'constraints', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                'name', k.conname,
                'kind', k.contype,
                'definition', pg_get_constraintdef(k.oid),
                'columns', (SELECT coalesce(jsonb_agg(a.attname ORDER BY n), '[]')
                    FROM unnest(k.conkey) WITH ORDINALITY AS u (num, n)
                    JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.num),
                'target', (SELECT jsonb_build_object('schema', t.schema, 'name', t.name) FROM named AS t WHERE t.oid = k.confrelid),
                'target_columns', (SELECT coalesce(jsonb_agg(a.attname ORDER BY n), '[]')
                    FROM unnest(k.confkey) WITH ORDINALITY AS u (num, n)
                    JOIN pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = u.num),
                -- Since PostgreSQL 15.
                'delete_columns', (SELECT coalesce(jsonb_agg(a.attname ORDER BY n), '[]')
                    FROM jsonb_array_elements_text(CASE jsonb_typeof(to_jsonb(k) -> 'confdelsetcols') WHEN 'array'
                        THEN to_jsonb(k) -> 'confdelsetcols' ELSE '[]' END) WITH ORDINALITY AS u (num, n)
                    JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.num::int),
                -- By a view that groups by the key, or a function with a body like that.
                'is_built_upon', EXISTS (SELECT FROM pg_depend AS d WHERE d.refclassid = 'pg_constraint'::regclass AND d.refobjid = k.oid
                    AND d.classid IN ('pg_rewrite'::regclass, 'pg_proc'::regclass)),
                'on_delete', k.confdeltype, 'on_update', k.confupdtype, 'is_full', k.confmatchtype = 'f',
                'is_deferrable', k.condeferrable, 'is_deferred', k.condeferred, 'is_validated', k.convalidated,
                'is_inherited', k.coninhcount > 0,
                'comment', obj_description(k.oid, 'pg_constraint')) ORDER BY k.conname), '[]')
            FROM pg_constraint AS k WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'f', 'c', 'x')
                AND (k.contype <> 'f' OR k.conparentid = 0)),
        'indexes', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                'name', x.relname,
                -- What stands behind its name and table.
                'tail', substr(pg_get_indexdef(x.oid), 1 + length(format('CREATE %sINDEX %I ON %s%I.%I',
                    CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, x.relname,
                    CASE WHEN x.relkind = 'I' THEN 'ONLY ' ELSE '' END, c.nspname, c.relname))),
                'method', m.amname,
                'columns', (SELECT coalesce(jsonb_agg(a.attname ORDER BY n), '[]')
                    FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u (num, n)
                    LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = u.num AND u.num > 0
                    WHERE n <= i.indnkeyatts),
                'is_unique', i.indisunique, 'is_primary', i.indisprimary, 'is_valid', i.indisvalid,
                'is_partial', i.indpred IS NOT NULL,
                'is_replica_identity', i.indisreplident OR i.indisprimary AND c.relreplident = 'd'
                    AND EXISTS (SELECT FROM pg_publication_tables AS p WHERE (p.schemaname, p.tablename) = (c.nspname, c.relname)),
                'is_inherited', EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = x.oid),
                'constraint', (SELECT k.conname FROM pg_constraint AS k WHERE k.conindid = x.oid AND k.contype IN ('p', 'u', 'x')),
                'bytes', pg_relation_size(x.oid),
                'comment', obj_description(x.oid, 'pg_class')) ORDER BY x.relname), '[]')
            FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_am AS m ON m.oid = x.relam
            WHERE i.indrelid = c.oid),
        'triggers', (SELECT coalesce(jsonb_agg(t.tgname ORDER BY t.tgname), '[]')
            FROM pg_trigger AS t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
        'grantees', (SELECT coalesce(jsonb_agg(DISTINCT CASE WHEN g.grantee = 0 THEN 'public' ELSE pg_get_userbyid(g.grantee) END), '[]')
            FROM aclexplode(c.relacl) AS g WHERE g.grantee <> c.relowner)
    ) ORDER BY c.nspname, c.relname), '[]')
    FROM relations AS c WHERE c.relkind IN ('r', 'p')),
'views', (
    SELECT coalesce(jsonb_agg(jsonb_build_object(
        'schema', c.nspname, 'name', c.relname,
        'is_materialized', c.relkind = 'm',
        'is_invoker', coalesce(c.reloptions::text[] && ARRAY['security_invoker=true', 'security_invoker=on', 'security_invoker=1'], false),
        'is_public', EXISTS (SELECT FROM aclexplode(c.relacl) AS g WHERE g.grantee = 0),
        'reads', (SELECT coalesce(jsonb_agg(DISTINCT jsonb_build_object('schema', t.schema, 'name', t.name)), '[]')
            FROM pg_rewrite AS w JOIN pg_depend AS d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid <> c.oid
            JOIN named AS t ON t.oid = d.refobjid WHERE w.ev_class = c.oid)
    ) ORDER BY c.nspname, c.relname), '[]')
    FROM relations AS c WHERE c.relkind IN ('v', 'm')),
'definers', (
    SELECT coalesce(jsonb_agg(p.oid::regprocedure::text ORDER BY p.oid::regprocedure::text), '[]')
    FROM pg_proc AS p JOIN ours AS o ON o.oid = p.pronamespace
    WHERE p.prosecdef AND NOT EXISTS (
        SELECT FROM pg_depend AS d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')),
'logins', (
    SELECT coalesce(jsonb_agg(r.rolname ORDER BY r.rolname), '[]') FROM pg_roles AS r
    WHERE r.rolcanlogin AND NOT r.rolsuper AND NOT r.rolbypassrls AND r.rolname !~ '^pg_'
        AND EXISTS (SELECT FROM relations AS c WHERE c.relkind IN ('r', 'p')
            AND (c.relowner = r.oid OR has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE')))),
'roles', (SELECT jsonb_agg(r.rolname ORDER BY r.rolname) FROM pg_roles AS r),
'mighty', (
    SELECT coalesce(jsonb_agg(r.rolname ORDER BY r.rolname), '[]') FROM pg_roles AS r
    WHERE r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolreplication
        OR EXISTS (SELECT FROM pg_auth_members AS m WHERE m.member = r.oid)),
'interface', to_regclass('pgtenant.interface') IS NOT NULL
)
