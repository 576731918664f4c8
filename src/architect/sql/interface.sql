-- The SQL interface of pgtenant: schema pgtenant, owned by a role that nobody logs in as.
--
-- Idempotent: run again, it upgrades in place. Runs in one transaction.
--
-- How it is safe:
--   * The context arrives in the setting pgtenant.seal, which any client may overwrite; what counts is its
--     HMAC-SHA-256, made by the proxy with a key that only the functions below can read, for one server process
--     and for at most a minute. Whatever else is put there is refused (42501).
--   * The key is not in the functions' text, which everyone can read in pg_proc, but in a table without grants.
--   * SECURITY DEFINER with a fixed search_path: no operator or function of the caller's is ever run.
--   * STABLE, never IMMUTABLE: a cached plan must not keep one organization's id for the next. PARALLEL RESTRICTED:
--     the check runs in the leader, whose process id the seal names.
--   * It runs with an installer's rights in a database where others may own schemas: names are looked up in
--     pg_catalog only, and a schema or a role of this name that somebody else prepared is refused, not adopted.

SET LOCAL search_path = pg_catalog, pg_temp;
-- Rather not installed than that everybody waits behind it.
SET LOCAL lock_timeout = '5s';

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pgtenant_owner') THEN
        CREATE ROLE pgtenant_owner NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION NOINHERIT;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database's installation made it at the same moment
END
$$;

DO $$
DECLARE
    owner constant regrole := 'pgtenant_owner';
    found text;
BEGIN
    SELECT 'role pgtenant_owner may log in, or has more rights than it should' INTO found
        FROM pg_roles WHERE oid = owner AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication);
    -- An installer that is no superuser must be a member. Whoever manages roles can make itself one.
    IF found IS NULL THEN
        SELECT format('role %I is a member of pgtenant_owner', r.rolname) INTO found
            FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
            WHERE m.roleid = owner AND NOT r.rolsuper AND NOT r.rolcreaterole AND r.rolname <> current_user;
    END IF;
    IF found IS NULL THEN
        SELECT 'schema pgtenant is owned by ' || nspowner::regrole INTO found
            FROM pg_namespace WHERE nspname = 'pgtenant' AND nspowner <> owner;
    END IF;
    IF found IS NULL THEN
        SELECT format('%s is owned by %s', what, whose::regrole) INTO found
            FROM (SELECT oid::regclass::text, relowner FROM pg_class WHERE relnamespace = to_regnamespace('pgtenant')
                  UNION ALL
                  SELECT oid::regprocedure::text, proowner FROM pg_proc WHERE pronamespace = to_regnamespace('pgtenant')
                  UNION ALL
                  SELECT oid::regtype::text, typowner FROM pg_type WHERE typnamespace = to_regnamespace('pgtenant')
                 ) AS o (what, whose)
            WHERE whose <> owner;
    END IF;
    IF found IS NULL THEN
        SELECT format('function %s is not one of ours', oid::regprocedure) INTO found
            FROM pg_proc WHERE pronamespace = to_regnamespace('pgtenant') AND proname NOT IN (
                'organization_id', 'project_id', 'verified_payload', 'subject', 'roles', 'claims', 'claim', 'has_role',
                'context', 'require_organization', 'bind', 'put_back', 'row_organization', 'row_project',
                'audit', 'append_only', 'slow_statements', 'organization_sizes')
                AND proname NOT LIKE 'fill\_%';
    END IF;
    IF found IS NULL THEN
        SELECT format('%s has a trigger, a rule or a policy', oid::regclass) INTO found
            FROM pg_class c WHERE relnamespace = to_regnamespace('pgtenant') AND relkind <> 'v' AND relname <> 'audit_log' AND (
                EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid)
                OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid)
                OR EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid));
    END IF;
    IF found IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'schema pgtenant is not ours alone: ' || found,
            HINT = 'Whoever prepared it could read the seal''s key. Look at it, remove it (DROP SCHEMA pgtenant CASCADE, REVOKE, or DROP ROLE), and install again.';
    END IF;
END
$$;

CREATE SCHEMA IF NOT EXISTS pgtenant;
ALTER SCHEMA pgtenant OWNER TO pgtenant_owner;
REVOKE ALL ON SCHEMA pgtenant FROM PUBLIC;
COMMENT ON SCHEMA pgtenant IS 'Tenant context of pgtenant: who the current query runs for.';

-- HMAC's two pads (RFC 2104) instead of the key, computed once.
CREATE TABLE IF NOT EXISTS pgtenant.seal_keys (
    kid       text PRIMARY KEY,
    inner_pad bytea NOT NULL CHECK (pg_catalog.octet_length(inner_pad) = 64),
    outer_pad bytea NOT NULL CHECK (pg_catalog.octet_length(outer_pad) = 64),
    installed timestamptz NOT NULL DEFAULT pg_catalog.now()
);
REVOKE ALL ON pgtenant.seal_keys FROM PUBLIC;
COMMENT ON TABLE pgtenant.seal_keys IS 'Keys that check seals. Readable by the check alone; the newest row is not special.';

CREATE TABLE IF NOT EXISTS pgtenant.interface (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint NOT NULL,
    id_type  text NOT NULL
);
REVOKE ALL ON pgtenant.interface FROM PUBLIC;
COMMENT ON TABLE pgtenant.interface IS 'Which version of this interface is installed, and the type of tenant ids.';

CREATE TABLE IF NOT EXISTS pgtenant.context_settings (
    name text PRIMARY KEY CHECK (name ~ '^[a-z_][a-z0-9_]*([.][a-z_][a-z0-9_]*)+$')
);
REVOKE ALL ON pgtenant.context_settings FROM PUBLIC;
COMMENT ON TABLE pgtenant.context_settings IS 'Settings that are bound with a context ([context.settings]); put_back() refuses them.';

-- Only where it changes something: it waits for every transaction that has asked for its context, and all others behind it.
DO $$
DECLARE
    found regclass;
BEGIN
    FOR found IN SELECT oid FROM pg_class
        WHERE oid IN ('pgtenant.seal_keys'::regclass, 'pgtenant.interface'::regclass, 'pgtenant.context_settings'::regclass)
            AND relowner <> 'pgtenant_owner'::regrole
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO pgtenant_owner', found);
    END LOOP;
END
$$;

-- Whose rows: the organization of the current context. Raises 42501 without one.
CREATE OR REPLACE FUNCTION pgtenant.organization_id() RETURNS {id_type}
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
{verify_declare}
BEGIN
{verify}
    RETURN split_part(seal, E'\n', 6)::{id_type};
END
$function$;

-- Which project's rows; NULL means the whole organization. Raises 42501 without a context.
CREATE OR REPLACE FUNCTION pgtenant.project_id() RETURNS {id_type}
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
{verify_declare}
BEGIN
{verify}
    RETURN NULLIF(split_part(seal, E'\n', 7), '')::{id_type};
END
$function$;

-- Subject, roles and claims, whose digest the seal covers.
CREATE OR REPLACE FUNCTION pgtenant.verified_payload() RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
{verify_declare}
    payload text := current_setting('pgtenant.claims', true);
BEGIN
{verify}
    IF encode(sha256(convert_to(payload, 'UTF8')), 'hex') IS DISTINCT FROM split_part(seal, E'\n', 8) THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'tenant context refused',
            HINT = 'Only pgtenant can set the tenant context; connect through it.';
    END IF;
    RETURN payload::jsonb;
END
$function$;

-- Who asks: the token's subject.
CREATE OR REPLACE FUNCTION pgtenant.subject() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN pgtenant.verified_payload() ->> 'subject';
END
$function$;

-- The roles that the token grants, as text.
CREATE OR REPLACE FUNCTION pgtenant.roles() RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN ARRAY(SELECT jsonb_array_elements_text(pgtenant.verified_payload() -> 'roles'));
END
$function$;

-- All claims of the token.
CREATE OR REPLACE FUNCTION pgtenant.claims() RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN pgtenant.verified_payload() -> 'claims';
END
$function$;

-- One claim as text, NULL if the token has none of this name.
CREATE OR REPLACE FUNCTION pgtenant.claim(name text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN pgtenant.verified_payload() -> 'claims' ->> name;
END
$function$;

-- Whether the token grants a role.
CREATE OR REPLACE FUNCTION pgtenant.has_role(name text) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN (pgtenant.verified_payload() -> 'roles') ? name;
END
$function$;

-- The whole context as one object, for people and logs.
CREATE OR REPLACE FUNCTION pgtenant.context() RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
{verify_declare}
BEGIN
{verify}
    RETURN pgtenant.verified_payload() || jsonb_build_object(
        'organization', split_part(seal, E'\n', 6),
        'project', NULLIF(split_part(seal, E'\n', 7), ''),
        'seal_expires', to_timestamp(split_part(seal, E'\n', 5)::float8));
END
$function$;

-- Stops with 42501 unless the current context is this organization's: a guard for functions and jobs.
CREATE OR REPLACE FUNCTION pgtenant.require_organization(id {id_type}) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF pgtenant.organization_id() IS DISTINCT FROM id THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'not the current organization';
    END IF;
END
$function$;

-- Puts the session under a context where its role may not call set_config (install --harden): whatever it is called
-- with, nothing is set that the seal does not prove. An empty seal is no context.
CREATE OR REPLACE FUNCTION pgtenant.bind(seed float8, new_seal text, new_payload text, is_local boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF seed IS NOT NULL THEN
        PERFORM setseed(seed);
    END IF;
    PERFORM set_config('pgtenant.seal', new_seal, is_local), set_config('pgtenant.claims', new_payload, is_local);
    IF split_part(new_seal, E'\n', 2) = 'v1-read-only' THEN
        PERFORM set_config('transaction_read_only', 'on', true), set_config('default_transaction_read_only', 'on', is_local);
    END IF;
    IF new_seal = '' THEN
        PERFORM set_config(c.name, '', is_local) FROM pgtenant.context_settings AS c;
    ELSE
        PERFORM set_config(s.key, s.value, is_local)
            FROM jsonb_each_text(pgtenant.verified_payload() -> 'settings') AS s;
    END IF;
    RETURN true;
END
$function$;

-- Sets what a client had set itself, on the next server that it gets, in place of set_config.
CREATE OR REPLACE FUNCTION pgtenant.put_back(name text, value text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    lowered text := lower(put_back.name COLLATE "C");
BEGIN
    IF lowered LIKE 'pgtenant.%' OR lowered IN ('role', 'session_authorization')
        OR EXISTS (SELECT FROM pgtenant.context_settings AS c WHERE c.name = lowered)
    THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = format('setting "%s" belongs to the tenant context', put_back.name),
            HINT = 'Only pgtenant can set the tenant context; connect through it.';
    END IF;
    -- In these a byte of a character may look like a backslash, and texts are not what the proxy reads. What makes
    -- transactions read-only stays, as long as the seal says so.
    IF lowered = 'client_encoding' AND regexp_replace(lower(put_back.value COLLATE "C"), '[^a-z0-9]', '', 'g') IN ('sjis', 'shiftjis',
            'mskanji', 'win932', 'windows932', 'shiftjis2004', 'big5', 'win950', 'windows950', 'gbk', 'win936', 'windows936', 'uhc',
            'win949', 'windows949', 'gb18030', 'johab')
        OR lowered IN ('transaction_read_only', 'default_transaction_read_only') AND put_back.value <> 'on'
            AND split_part(current_setting('pgtenant.seal', true), E'\n', 2) = 'v1-read-only'
    THEN
        RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = format('setting "%s" cannot be put back to this', put_back.name),
            HINT = 'Only pgtenant can set the tenant context; connect through it.';
    END IF;
    RETURN set_config(put_back.name, put_back.value, false);
END
$function$;

-- Nobody but the owner has any right on the tables, whoever granted it; on the functions PUBLIC has none.
DO $$
DECLARE
    signature text;
    grantee text;
BEGIN
    FOR signature IN SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'pgtenant'::regnamespace LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO pgtenant_owner', signature);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
    END LOOP;
    FOR grantee IN
        SELECT DISTINCT rolname
        FROM (SELECT relacl FROM pg_class WHERE relnamespace = 'pgtenant'::regnamespace
              UNION ALL
              SELECT attacl FROM pg_attribute WHERE attrelid IN (
                  'pgtenant.seal_keys'::regclass, 'pgtenant.interface'::regclass, 'pgtenant.context_settings'::regclass)
             ) AS acls (acl), aclexplode(acl) AS a JOIN pg_roles r ON r.oid = a.grantee
        WHERE rolname <> 'pgtenant_owner'
    LOOP
        EXECUTE format('REVOKE ALL ON pgtenant.seal_keys, pgtenant.interface, pgtenant.context_settings FROM %I CASCADE', grantee);
    END LOOP;
    FOR grantee IN
        SELECT rolname FROM pg_namespace n, aclexplode(n.nspacl) AS a JOIN pg_roles r ON r.oid = a.grantee
        WHERE nspname = 'pgtenant' AND rolname <> 'pgtenant_owner' AND a.privilege_type = 'CREATE'
    LOOP
        EXECUTE format('REVOKE CREATE ON SCHEMA pgtenant FROM %I CASCADE', grantee);
    END LOOP;
END
$$;
