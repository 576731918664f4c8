CREATE TABLE IF NOT EXISTS pgtenant.audit_log (
    id              bigint GENERATED ALWAYS AS IDENTITY,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    organization_id {organization} NOT NULL,
    project_id      {project},
    subject         text,
    role_name       name NOT NULL DEFAULT session_user,
    transaction_id  xid8 NOT NULL DEFAULT pg_current_xact_id(),
    table_name      text NOT NULL,
    action          text NOT NULL CHECK (action IN ('INSERT', 'UPDATE', 'DELETE')),
    old_row         jsonb,
    new_row         jsonb,
    PRIMARY KEY (organization_id, id)
);
ALTER TABLE pgtenant.audit_log OWNER TO pgtenant_owner;
REVOKE ALL ON pgtenant.audit_log FROM PUBLIC;
COMMENT ON TABLE pgtenant.audit_log IS 'Who changed which rows: written by trigger pgtenant.audit() alone, read by each organization, changed by nobody.';

-- Trigger of tables with audit = true; its arguments are the columns of the organization and, where there is one, the project.
CREATE OR REPLACE FUNCTION pgtenant.audit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    was jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) END;
    becomes jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) END;
    whose jsonb := coalesce(becomes, was);
    who text;
BEGIN
    -- By the seal, not by what a client says; a legacy role has none.
    IF coalesce(current_setting('pgtenant.seal', true), '') <> '' THEN
        who := pgtenant.subject();
    END IF;
    INSERT INTO pgtenant.audit_log (organization_id, project_id, subject, table_name, action, old_row, new_row)
        VALUES ((whose ->> TG_ARGV[0])::{organization}, (whose ->> TG_ARGV[1])::{project}, who,
            format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME), TG_OP, was, becomes);
    RETURN NULL;
END
$function$;

CREATE OR REPLACE FUNCTION pgtenant.append_only() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = format('%I.%I is append-only', TG_TABLE_SCHEMA, TG_TABLE_NAME),
        HINT = 'Its keeper may disable trigger append_only.';
END
$function$;
DROP TRIGGER IF EXISTS append_only ON pgtenant.audit_log;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON pgtenant.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION pgtenant.append_only();

-- For operators (role pg_monitor): indexes, and whether they lead with the organization.
CREATE OR REPLACE VIEW pgtenant.index_usage AS
    SELECT s.schemaname, s.relname AS table_name, s.indexrelname AS index_name, s.idx_scan, s.idx_tup_read,
        pg_relation_size(s.indexrelid) AS bytes, a.attname AS leads_with, i.indisvalid AS is_valid, i.indisunique AS is_unique
    FROM pg_stat_user_indexes AS s
    JOIN pg_index AS i ON i.indexrelid = s.indexrelid
    LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attnum > 0
    WHERE s.schemaname <> 'pgtenant';
COMMENT ON VIEW pgtenant.index_usage IS 'Indexes: how often each is used, its size, and the column that it leads with.';

-- What the functions cost that policies call; track_functions must be pl or all.
CREATE OR REPLACE VIEW pgtenant.policy_costs AS
    SELECT f.funcname AS function_name, f.calls, f.total_time AS total_ms, f.self_time AS self_ms,
        round((1000 * f.total_time / nullif(f.calls, 0))::numeric, 1) AS us_per_call
    FROM pg_stat_user_functions AS f WHERE f.schemaname = 'pgtenant';
COMMENT ON VIEW pgtenant.policy_costs IS 'Calls and times of the functions that policies call (track_functions = pl).';

-- The statements that take longest on average; empty without the extension pg_stat_statements.
CREATE OR REPLACE FUNCTION pgtenant.slow_statements(at_least_ms float8 DEFAULT 200, at_most integer DEFAULT 50)
RETURNS TABLE (role_name name, calls bigint, mean_ms float8, max_ms float8, rows bigint, statement text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    extension_schema text := (SELECT n.nspname FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
        WHERE e.extname = 'pg_stat_statements');
BEGIN
    IF extension_schema IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT pg_get_userbyid(s.userid), s.calls, s.mean_exec_time, s.max_exec_time, s.rows, s.query FROM %I.pg_stat_statements AS s '
        'WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.max_exec_time >= $1 '
        'ORDER BY s.mean_exec_time DESC LIMIT $2', extension_schema) USING at_least_ms, at_most;
END
$function$;

-- Rows of each organization in each table that has its column; counts, so it takes as long as that.
CREATE OR REPLACE FUNCTION pgtenant.organization_sizes(organization_column name DEFAULT '{column}')
RETURNS TABLE (table_name regclass, organization_id {organization}, row_count bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    found regclass;
BEGIN
    FOR found IN
        SELECT c.oid::regclass FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = organization_column AND NOT a.attisdropped
        WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pgtenant')
        ORDER BY 1
    LOOP
        RETURN QUERY EXECUTE format('SELECT %L::regclass, %I, count(*) FROM %s GROUP BY 2', found::text, organization_column, found);
    END LOOP;
END
$function$;

ALTER VIEW pgtenant.index_usage OWNER TO pgtenant_owner;
ALTER VIEW pgtenant.policy_costs OWNER TO pgtenant_owner;
ALTER FUNCTION pgtenant.audit() OWNER TO pgtenant_owner;
ALTER FUNCTION pgtenant.append_only() OWNER TO pgtenant_owner;
ALTER FUNCTION pgtenant.slow_statements(float8, integer) OWNER TO pgtenant_owner;
ALTER FUNCTION pgtenant.organization_sizes(name) OWNER TO pgtenant_owner;
REVOKE ALL ON FUNCTION pgtenant.audit(), pgtenant.append_only(), pgtenant.slow_statements(float8, integer), pgtenant.organization_sizes(name) FROM PUBLIC;
GRANT USAGE ON SCHEMA pgtenant TO pg_monitor;
GRANT SELECT ON pgtenant.index_usage, pgtenant.policy_costs TO pg_monitor;
GRANT EXECUTE ON FUNCTION pgtenant.slow_statements(float8, integer), pgtenant.organization_sizes(name) TO pg_monitor;
