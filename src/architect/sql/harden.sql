-- Takes from everyone what would get past the proxy's guard over plain settings, and what one organization could do to
-- another's session. Superusers keep everything; roles without tenants are given back what they had.
--
-- Undone by granting it to PUBLIC again, line by line.

-- Whoever can call it can set any setting, by whatever text is executed somewhere.
REVOKE EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) TO pgtenant_owner;
REVOKE UPDATE ON pg_catalog.pg_settings FROM PUBLIC;
-- DO, and functions that execute what the proxy never reads. Existing ones go on working.
REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC;
-- Temporary tables and functions, which come before all others of their name.
DO $$
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
END
$$;
-- Organizations share a role, and a role may end its own sessions.
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_cancel_backend(integer), pg_catalog.pg_terminate_backend(integer, bigint) FROM PUBLIC;
-- Large objects have no policies.
REVOKE EXECUTE ON FUNCTION pg_catalog.lo_creat(integer), pg_catalog.lo_create(oid), pg_catalog.lo_from_bytea(oid, bytea),
    pg_catalog.lo_put(oid, bigint, bytea), pg_catalog.lowrite(integer, bytea), pg_catalog.lo_truncate(integer, integer),
    pg_catalog.lo_truncate64(integer, bigint), pg_catalog.lo_unlink(oid) FROM PUBLIC;
-- What a session's random() gives, and messages to whoever listens.
REVOKE EXECUTE ON FUNCTION pg_catalog.setseed(double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pg_catalog.setseed(double precision) TO pgtenant_owner;
REVOKE EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text) FROM PUBLIC;
