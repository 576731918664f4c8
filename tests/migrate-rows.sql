-- Fills the tables of whatever schema with a few rows each: those first that others refer to, foreign keys to rows that are there, other
-- columns by their type. What a check or a unique constraint refuses is left out. Prints how many tables have rows, of how many, and how many rows.
\set ON_ERROR_STOP on
SET client_min_messages = warning;

-- A value of this type for the n-th row, as an expression over n.
CREATE FUNCTION pg_temp.value(kind oid, modifier integer, label text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    t pg_type := (SELECT pg_type FROM pg_type WHERE oid = kind);
    width integer := CASE WHEN modifier > 4 THEN modifier - 4 ELSE 200 END;
    named text := format_type(kind, modifier);
BEGIN
    RETURN CASE
        -- Hashes, as icingadb has them.
        WHEN t.typtype = 'd' AND t.typname ~ '^bytea[0-9]+$' THEN
            format('substr(sha256((%L || n)::bytea), 1, %s)::%s', label, substr(t.typname, 6), named)
        WHEN t.typtype = 'd' THEN format('(%s)::%s', pg_temp.value(t.typbasetype, t.typtypmod, label), named)
        WHEN t.typtype = 'e' THEN format('(enum_range(NULL::%s))[1 + n %% cardinality(enum_range(NULL::%1$s))]', named)
        WHEN t.typcategory = 'A' THEN format('''{}''::%s', named)
        WHEN t.typname IN ('json', 'jsonb') THEN format('json_build_object(%L, n)::%s', label, named)
        WHEN t.typname = 'uuid' THEN format('md5(%L || n)::uuid', label)
        WHEN t.typname = 'bytea' THEN 'decode(md5(n::text), ''hex'')'
        WHEN t.typname = 'bool' THEN 'n % 2 = 0'
        WHEN t.typname = 'inet' THEN '(''10.0.0.'' || n)::inet'
        WHEN t.typname = 'interval' THEN 'n * interval ''1 minute'''
        WHEN t.typcategory = 'D' THEN format('(timestamptz ''2026-01-01 00:00+00'' + n * interval ''1 hour'')::%s', named)
        WHEN t.typcategory = 'N' THEN format('n::%s', named)
        WHEN t.typcategory = 'S' THEN format('left(n || %L, %s)::%s', '-' || label, width, named)
    END;
END $$;

DO $$
DECLARE
    r record;
    columns text;
    taken text;
BEGIN
    FOR pass IN 1..8 LOOP
        FOR r IN SELECT c.oid, format('%I.%I', s.nspname, c.relname) AS name, c.relname
                 FROM pg_class AS c JOIN pg_namespace AS s ON s.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND s.nspname NOT IN ('pg_catalog', 'information_schema')
                   AND s.nspname !~ '^pg_' ORDER BY 2 LOOP
            EXECUTE format('SELECT EXISTS (SELECT FROM %s OFFSET 20)', r.name) INTO STRICT taken;
            CONTINUE WHEN taken::boolean;
            SELECT string_agg(format('%I', a.attname), ', ' ORDER BY a.attnum),
                   string_agg(coalesce(
                       -- The n-th of the rows that a foreign key may refer to, the same for all of its columns.
                       (SELECT format('(SELECT p.%I FROM %s AS p ORDER BY %s OFFSET n %% greatest(1, (SELECT count(*) FROM %2$s)) LIMIT 1)',
                                   target.attname, k.confrelid::regclass,
                                   (SELECT string_agg(format('p.%I', o.attname), ', ' ORDER BY o.attnum) FROM pg_attribute AS o
                                    WHERE o.attrelid = k.confrelid AND o.attnum = ANY (k.confkey)))
                        FROM pg_constraint AS k, unnest(k.conkey, k.confkey) AS pair (own, its)
                        JOIN pg_attribute AS target ON target.attnum = its
                        WHERE k.conrelid = r.oid AND k.contype = 'f' AND target.attrelid = k.confrelid AND own = a.attnum
                        ORDER BY k.conname LIMIT 1),
                       pg_temp.value(a.atttypid, a.atttypmod, r.relname), 'NULL'), ', ' ORDER BY a.attnum)
                INTO columns, taken
                FROM pg_attribute AS a
                WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity <> 'a';
            FOR n IN 100..140 LOOP
                BEGIN
                    EXECUTE format('INSERT INTO %s (%s) SELECT %s FROM (VALUES (%s)) AS v (n)', r.name, columns, taken, n);
                EXCEPTION WHEN OTHERS THEN NULL;
                END;
            END LOOP;
        END LOOP;
    END LOOP;
END $$;

ANALYZE;
SELECT count(*) FILTER (WHERE n > 0) || ' of ' || count(*) || ' tables, ' || sum(n) || ' rows'
FROM (SELECT (xpath('/row/c/text()', query_to_xml(format('SELECT count(*) AS c FROM %I.%I', s.nspname, c.relname), false, true, '')))[1]::text::bigint AS n
      FROM pg_class AS c JOIN pg_namespace AS s ON s.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND s.nspname NOT IN ('pg_catalog', 'information_schema') AND s.nspname !~ '^pg_') AS t;
