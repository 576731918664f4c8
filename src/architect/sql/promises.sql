-- What isolation rests on, each with its definition as text: row level security and its policies, keys, foreign keys, checks, views, the
-- application's roles and their rights, and what fills new rows. $1: those roles.
WITH ours AS (
    SELECT n.oid, n.nspname FROM pg_namespace AS n
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
), relations AS (
    SELECT c.*, format('%I.%I', o.nspname, c.relname) AS named FROM pg_class AS c JOIN ours AS o ON o.oid = c.relnamespace
    WHERE c.relpersistence <> 't' AND NOT (o.nspname = 'pgtenant' AND c.relname ~ '^migration_')
), application AS (
    SELECT r.* FROM pg_roles AS r WHERE r.rolname = ANY ($1)
)
SELECT format('row level security of %s', named) AS object,
    format('enabled %s, forced %s', relrowsecurity, relforcerowsecurity) AS definition
FROM relations WHERE relkind IN ('r', 'p') AND relrowsecurity
UNION ALL
SELECT format('policy %I on %s', p.polname, c.named),
    format('%s for %s to %s using %s with check %s', CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END, p.polcmd,
        (SELECT string_agg(coalesce(r.rolname, 'public'), ', ' ORDER BY r.rolname)
            FROM unnest(p.polroles) AS u (role) LEFT JOIN pg_roles AS r ON r.oid = u.role),
        pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
FROM pg_policy AS p JOIN relations AS c ON c.oid = p.polrelid
UNION ALL
SELECT format('constraint %I of %s', k.conname, c.named), pg_get_constraintdef(k.oid) || CASE WHEN k.convalidated THEN '' ELSE ' (not validated)' END
FROM pg_constraint AS k JOIN relations AS c ON c.oid = k.conrelid WHERE k.contype IN ('p', 'u', 'f', 'x') AND c.relrowsecurity
UNION ALL
SELECT format('column %I of %s', a.attname, c.named), format('not null %s, default %s', a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
FROM pg_attribute AS a JOIN relations AS c ON c.oid = a.attrelid JOIN pg_attrdef AS d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
WHERE pg_get_expr(d.adbin, d.adrelid) ~ 'row_(organization|project)\('
UNION ALL
SELECT format('trigger %I on %s', t.tgname, c.named), pg_get_triggerdef(t.oid) || format(' (%s)', t.tgenabled)
FROM pg_trigger AS t JOIN relations AS c ON c.oid = t.tgrelid WHERE t.tgname ~ '^pgtenant_'
UNION ALL
SELECT format('view %s', c.named), format('owned by %I, with %s', pg_get_userbyid(c.relowner), coalesce(c.reloptions::text, 'no options'))
FROM relations AS c WHERE c.relkind IN ('v', 'm')
    AND EXISTS (SELECT FROM application AS r WHERE has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE'))
UNION ALL
SELECT format('role %I', r.rolname), format('superuser %s, bypasses row level security %s, creates roles %s, replication %s, member of %s',
    r.rolsuper, r.rolbypassrls, r.rolcreaterole, r.rolreplication,
    coalesce((SELECT string_agg(g.rolname, ', ' ORDER BY g.rolname) FROM pg_auth_members AS m JOIN pg_roles AS g ON g.oid = m.roleid
        WHERE m.member = r.oid), 'none'))
FROM application AS r
UNION ALL
SELECT format('rights of %I on %s', r.rolname, c.named), string_agg(p.name, ', ' ORDER BY p.name)
FROM application AS r CROSS JOIN relations AS c
CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (name)
WHERE c.relkind IN ('r', 'p', 'v', 'm') AND has_table_privilege(r.oid, c.oid, p.name)
GROUP BY r.rolname, c.named
UNION ALL
SELECT format('function %s', p.oid::regprocedure), format('owned by %I, %s, %s', pg_get_userbyid(p.proowner),
    CASE WHEN p.prosecdef THEN 'with its owner''s rights' ELSE 'with the caller''s rights' END, md5(p.prosrc))
FROM pg_proc AS p JOIN ours AS o ON o.oid = p.pronamespace WHERE o.nspname = 'pgtenant'
    AND p.proname ~ '^(row_|fill_|audit$|append_only$)'
